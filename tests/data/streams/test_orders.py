"""Orders that follow the files of a dataset."""

import functools

import numpy as np
import pytest

from bn_research import data
from bn_research.data.streams import orders

SHARDS = (5, 1, 7, 3)
FIRSTS = np.cumsum((0, *SHARDS))


def pieces(order):
  """Cuts an order where the next example is of a different file."""
  files = np.searchsorted(FIRSTS, order, side='right') - 1
  cuts = np.flatnonzero(np.diff(files)) + 1
  return np.split(order, cuts), files[np.concatenate(([0], cuts))]


@pytest.mark.parametrize('name', orders.ORDERS)
def test_every_epoch_holds_every_example_once(name):
  for epoch in range(5):
    order = orders.epoch_order(name, SHARDS, 3, epoch)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(16))


@pytest.mark.parametrize('name', ['shards', 'within_shards'])
def test_the_examples_of_a_file_follow_each_other(name):
  seen = set()
  for epoch in range(40):
    order = orders.epoch_order(name, SHARDS, 0, epoch)
    _, files = pieces(order)
    assert sorted(files) == [0, 1, 2, 3]
    seen.add(tuple(files))
  assert len(seen) > 12  # of 24


def test_examples_of_a_file_as_stored_or_mixed():
  as_stored, mixed = (
    [orders.epoch_order(name, SHARDS, 0, epoch) for epoch in range(40)]
    for name in ('shards', 'within_shards')
  )
  for order, other in zip(as_stored, mixed, strict=True):
    for piece in pieces(order)[0]:
      np.testing.assert_array_equal(piece, np.sort(piece))
    # Both orders have the same order of the files.
    np.testing.assert_array_equal(pieces(order)[1], pieces(other)[1])
  third = {tuple(order[(order > 5) & (order < 13)]) for order in mixed}
  assert len(third) == 40


def test_files_are_mixed_independently():
  # Two files of the same size must not have the same order of examples.
  order = orders.epoch_order('within_shards', (50, 50), 0, 0)
  first, second = order[order < 50], order[order >= 50] - 50
  assert (first != second).any()


def test_all_examples_have_the_order_of_a_dataset_in_memory():
  by_name = functools.partial(orders.epoch_order, 'examples', SHARDS)
  np.testing.assert_array_equal(
    data.batch_indices(16, 5, 7, 0, 20, by_name),
    data.batch_indices(16, 5, 7, 0, 20),
  )


def test_the_order_is_the_same_everywhere():
  found = orders.epoch_order('within_shards', (3, 2, 3), 42, 1)
  np.testing.assert_array_equal(found, [1, 2, 0, 3, 4, 6, 7, 5])
