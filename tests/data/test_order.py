import collections

import numpy as np
import pytest

from bn_research import data, errors


def _stream(num_examples, batch_size, seed, num_batches):
  return data.batch_indices(num_examples, batch_size, seed, 0, num_batches)


@pytest.mark.parametrize(('n', 'batch'), [(12, 4), (10, 3), (7, 7), (5, 1)])
def test_every_epoch_holds_every_example_once(n, batch):
  indices = _stream(n, batch, seed=3, num_batches=5 * n).reshape(-1, n)
  assert indices.dtype == np.int32
  for epoch in indices:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


def test_any_slice_is_found_without_replaying():
  whole = _stream(50, 7, seed=1, num_batches=40)
  assert whole.shape == (40, 7)
  for start, stop in [(0, 1), (6, 8), (7, 23), (39, 40), (40, 40)]:
    part = data.batch_indices(50, 7, 1, start, stop)
    np.testing.assert_array_equal(part, whole[start:stop])


def test_a_caller_may_write_into_what_it_gets():
  first = _stream(20, 5, seed=0, num_batches=4)
  expected = first.copy()
  first[:] = 0
  np.testing.assert_array_equal(_stream(20, 5, 0, 4), expected)


def test_seed_and_epoch_are_two_keys():
  orders = [
    tuple(order)
    for seed in (-1, 0, 1, 2, 2**40)
    for order in _stream(100, 100, seed, 5)
  ]
  assert len(set(orders)) == len(orders) == 25


def test_permutations_are_uniform():
  counts = collections.Counter(
    tuple(order) for seed in range(80) for order in _stream(4, 4, seed, 30)
  )
  assert len(counts) == 24
  chi_squared = sum((count - 100) ** 2 / 100 for count in counts.values())
  assert chi_squared < 49.7  # the 0.1% point of 23 degrees of freedom


def test_the_order_is_the_same_everywhere():
  np.testing.assert_array_equal(
    _stream(8, 4, seed=42, num_batches=4),
    [[7, 0, 4, 2], [1, 3, 5, 6], [5, 1, 4, 7], [3, 0, 2, 6]],
  )


@pytest.mark.parametrize('batch_size', [-1, 0, 11])
def test_a_batch_that_does_not_fit(batch_size):
  with pytest.raises(errors.UserError, match=f'batch_size={batch_size} .*10'):
    data.batch_indices(10, batch_size, 0, 0, 1)
