import jax
import numpy as np
import pytest

from bn_research import errors
from bn_research.training import mesh


def test_a_mesh_has_the_devices_asked_for():
  made = mesh.create(4, 12)
  assert made.axis_names == ('data',)
  assert list(made.devices.flat) == jax.devices()[:4]


def test_what_is_replicated_is_everywhere():
  made = mesh.create(4, 12)
  tree = mesh.replicate({'a': np.arange(3)}, made)
  assert len(tree['a'].addressable_shards) == 4
  for shard in tree['a'].addressable_shards:
    np.testing.assert_array_equal(shard.data, [0, 1, 2])


@pytest.mark.parametrize(
  ('num_devices', 'batch_size', 'message'),
  [
    (9, 9, 'num_devices=9, but there are 8'),
    (0, 4, 'num_devices=0'),
    (8, 60, 'batch_size=60 cannot be split evenly over num_devices=8'),
  ],
)
def test_what_does_not_fit_is_one_line(num_devices, batch_size, message):
  with pytest.raises(errors.UserError, match=message):
    mesh.create(num_devices, batch_size)
