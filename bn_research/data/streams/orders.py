"""Orders of the examples of a stream, which follow the files of the dataset."""

import functools
from collections.abc import Callable

import numpy as np

from bn_research.data import order

# Purposes of draws; see `order.generator`.
_FILES, _EXAMPLES, DRAWS = 1, 2, 3

Shards = tuple[int, ...]


def whole(shards: Shards, seed: int, epoch: int) -> np.ndarray:
  """Returns a permutation of all examples, as for a dataset in memory.

  Args:
    shards: The number of examples in each file.
    seed: Any integer.
    epoch: The number of the epoch.
  """
  return order.permutation(sum(shards), seed, epoch)


def by_shard(
  shards: Shards, seed: int, epoch: int, *, is_mixed: bool
) -> np.ndarray:
  """Returns an order in which the examples of a file follow each other.

  Args:
    shards: The number of examples in each file.
    seed: Any integer.
    epoch: The number of the epoch.
    is_mixed: Whether the examples of a file are in random order, or as stored.

  Returns:
    The indices of all examples, int32 (sum(shards),).

  Source: Ioffe and Szegedy (2015), Section 4.2.1, "shuffle training examples
  more thoroughly". The order of the files is not published: a random order in
  each epoch is a choice of this package.
  """
  firsts = np.cumsum((0, *shards))
  generator = order.generator(seed, epoch, _FILES)
  pieces = []
  for shard in generator.permutation(len(shards)):
    piece = np.arange(firsts[shard], firsts[shard + 1], dtype=np.int32)
    if is_mixed:
      piece = order.generator(seed, epoch, _EXAMPLES, shard).permutation(piece)
    pieces.append(piece)
  return np.concatenate(pieces)


ORDERS: dict[str, Callable[[Shards, int, int], np.ndarray]] = {
  'examples': whole,
  'within_shards': functools.partial(by_shard, is_mixed=True),
  'shards': functools.partial(by_shard, is_mixed=False),
}
"""The order of an epoch, by name: functions of shards, seed and epoch."""


# A batch may use two epochs, and several runs may ask in turn.
@functools.lru_cache(maxsize=8)
def epoch_order(name: str, shards: Shards, seed: int, epoch: int) -> np.ndarray:
  """Returns the order of an epoch, without a new computation in each step.

  Args:
    name: A key of `ORDERS`.
    shards: The number of examples in each file.
    seed: Any integer.
    epoch: The number of the epoch.
  """
  found = ORDERS[name](shards, seed, epoch)
  found.setflags(write=False)
  return found
