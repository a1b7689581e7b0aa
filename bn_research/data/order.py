"""The order of examples, a function of (seed, epoch) without a saved state."""

import functools
from collections.abc import Callable

import numpy as np

from bn_research import errors

EpochOrder = Callable[[int, int], np.ndarray]


def batch_indices(
  num_examples: int,
  batch_size: int,
  seed: int,
  start: int,
  stop: int,
  epoch_order: EpochOrder | None = None,
) -> np.ndarray:
  """Returns the examples of the mini-batches from `start` up to `stop`.

  The order of epoch `e` is a permutation with the key `(seed, e)`. A mini-batch
  may cross from an epoch into the next epoch. After any number of steps, the
  numbers of uses of any two examples therefore differ by at most 1.

  Args:
    num_examples: Size of the training split.
    batch_size: Number of examples in a mini-batch.
    seed: Any integer.
    start: First mini-batch; training step `t` takes mini-batch `t`.
    stop: Last mini-batch plus 1.
    epoch_order: A function of the seed and of an epoch, which returns the order
      of all examples in the epoch. None for a permutation of all examples.

  Returns:
    Indices of examples, (stop - start, batch_size) int32.

  Raises:
    UserError: If `batch_size` is below 1 or above `num_examples`.
  """
  if not 1 <= batch_size <= num_examples:
    raise errors.UserError(
      f'batch_size={batch_size} does not fit the {num_examples} training '
      f'examples; choose 1 to {num_examples}'
    )
  if epoch_order is None:
    epoch_order = functools.partial(permutation, num_examples)
  indices = np.zeros((stop - start) * batch_size, np.int32)
  filled = 0
  while filled < len(indices):
    epoch, offset = divmod(start * batch_size + filled, num_examples)
    order = epoch_order(seed, epoch)
    piece = order[offset : offset + len(indices) - filled]
    indices[filled : filled + len(piece)] = piece
    filled += len(piece)
  return indices.reshape(-1, batch_size)


# Each chunk of training steps asks for an order again. Several runs in the same
# process may ask in turn, each with a different seed.
@functools.lru_cache(maxsize=32)
def permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  """Returns all examples in random order, int32 (num_examples,), read-only."""
  order = generator(seed, epoch).permutation(num_examples).astype(np.int32)
  # The cache returns the same array to every caller.
  order.setflags(write=False)
  return order


def generator(
  seed: int, number: int, purpose: int = 0, part: int = 0
) -> np.random.Generator:
  """Returns a generator, a function of its arguments without a saved state.

  Args:
    seed: Any integer.
    number: The number of an epoch or of a step, in [0, 2**64).
    purpose: What the draws are for, in [0, 2**64). The draws for two purposes
      are independent. 0 is the order of all examples.
    part: The number of a part of the dataset, in [0, 2**64).
  """
  # The remainder makes a negative seed fit into 64 bits.
  key = np.array([seed % 2**64, number], np.uint64)
  # Draws increase the lowest word of the counter, and never reach the others.
  counter = np.array([0, 0, part, purpose], np.uint64)
  return np.random.Generator(np.random.Philox(counter=counter, key=key))
