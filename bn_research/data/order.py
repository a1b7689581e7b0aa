"""The order of examples: a function of (seed, epoch), with nothing to save."""

import functools

import numpy as np

from bn_research import errors


def batch_indices(
  num_examples: int, batch_size: int, seed: int, start: int, stop: int
) -> np.ndarray:
  """Returns the examples of the batches from `start` up to `stop`.

  Epoch `e` is a permutation keyed by `(seed, e)`, and the epochs follow each
  other without a gap: a batch may end one epoch and begin the next, so that
  after any number of steps no example was seen two times more than another.

  Args:
    num_examples: Size of the training split.
    batch_size: Examples a batch.
    seed: Any integer.
    start: First batch; batch `t` is the one of training step `t`.
    stop: One past the last batch.

  Returns:
    Indices, shape (stop - start, batch_size), dtype int32.

  Raises:
    UserError: If a batch does not fit into the training split.
  """
  if not 1 <= batch_size <= num_examples:
    raise errors.UserError(
      f'batch_size={batch_size} does not fit the {num_examples} training '
      f'examples; choose 1 to {num_examples}'
    )
  indices = np.zeros((stop - start) * batch_size, np.int32)
  filled = 0
  while filled < len(indices):
    epoch, offset = divmod(start * batch_size + filled, num_examples)
    order = _epoch_order(num_examples, seed, epoch)
    piece = order[offset : offset + len(indices) - filled]
    indices[filled : filled + len(piece)] = piece
    filled += len(piece)
  return indices.reshape(-1, batch_size)


# Runs that train side by side ask in turn, each for its own seed.
@functools.lru_cache(maxsize=32)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  key = np.array([seed % 2**64, epoch], np.uint64)
  generator = np.random.Generator(np.random.Philox(key=key))
  order = generator.permutation(num_examples).astype(np.int32)
  order.setflags(write=False)
  return order
