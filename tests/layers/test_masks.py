"""Masks: what is hidden takes no part, and comes out as zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def _draw(shape=(4, 5, 3, 8), seed=0):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(1, 2, shape), jnp.float32)


CASES = [
  ('BatchNorm', (4, 5, 1, 1), {}),
  ('BatchNorm', (3, 1), {}),
  ('BatchNorm', (4, 5, 3, 8), {}),
  ('LayerNorm', (8,), {}),
  ('LayerNorm', (5, 1, 1), {'reduction_axes': (1, 2, 3)}),
  ('RMSNorm', (4, 5, 3, 8), {}),
  ('GroupNorm', (4, 5, 3, 8), {'num_groups': 4}),
  ('InstanceNorm', (4, 5, 3, 1), {}),
]


def _mask(shape):
  mask = np.random.default_rng(1).uniform(size=shape) < 0.7
  mask.flat[0] = True
  return jnp.asarray(mask)


@pytest.mark.parametrize(('name', 'shape', 'options'), CASES)
def test_the_visible_as_in_flax_and_nothing_of_the_hidden(
  pair, train, name, shape, options
):
  x, mask = _draw(), _mask(shape)
  ours, flax, variables = pair(name, x, **options)
  hidden = ~np.broadcast_to(mask, x.shape)
  call = train(name, mask=mask)
  y, moved = ours(variables, jnp.where(hidden, jnp.nan, x), **call)
  reference, flax_moved = flax(variables, x, **call)
  assert np.isfinite(y).all()
  np.testing.assert_array_equal(np.asarray(y)[hidden], 0)
  np.testing.assert_allclose(
    np.asarray(y)[~hidden], np.asarray(reference)[~hidden], 1e-5, 1e-5
  )
  for a, b in zip(*map(jax.tree.leaves, (moved, flax_moved)), strict=True):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, 1e-5, 1e-6)


def test_a_mask_of_integers_and_one_without_channels(family, train):
  x = _draw()
  mask = _mask((4, 5, 3, 1))
  for name in ('GroupNorm', 'BatchNorm'):
    options = {'num_groups': 4} if name == 'GroupNorm' else {}
    ours, variables = family.make(family.ours, name, 8, x, **options)
    full = jnp.broadcast_to(mask, x.shape)
    expected, _ = ours(variables, x, **train(name, mask=full))
    y, _ = ours(variables, x, **train(name, mask=mask.astype(jnp.int32)))
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y, expected, 1e-6, 1e-6)


def test_a_hidden_example_and_a_hidden_batch(family, train, name):
  x = _draw((4, 3, 32)).at[1].set(jnp.nan)
  mask = jnp.arange(4)[:, None, None] != 1
  ours, variables = family.make(family.ours, name, 32, _draw((4, 3, 32)))
  y, _ = ours(variables, x, **train(name, mask=mask))
  assert np.isfinite(y).all()
  y, moved = ours(variables, x, **train(name, mask=jnp.zeros(32, bool)))
  np.testing.assert_array_equal(y, 0)
  jax.tree.map(np.testing.assert_array_equal, moved, variables)


@pytest.mark.parametrize('empty', [False, True])
def test_examples_count_alike_over_devices(family, empty):
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  x = jnp.arange(32.0).reshape(16, 2)
  kept = np.ones((16, 1), bool)
  kept[5:8] = kept[9:12] = False
  kept[12:16] = not empty
  call = {'use_running_average': False, 'mask': jnp.asarray(kept)}
  options = {'axis_name': 'data', 'momentum': 0.0}

  def run(source):
    layer, variables = family.make(source, 'BatchNorm', 2, x, **options)
    rows = P('data')
    mapped = jax.shard_map(
      lambda v, x, mask: layer(v, x, **{**call, 'mask': mask}),
      mesh=mesh,
      in_specs=(P(), rows, rows),
      out_specs=(rows, P()),
    )
    return jax.jit(mapped)(variables, x, call['mask'])

  y, moved = run(family.ours)
  single, variables = family.make(family.ours, 'BatchNorm', 2, x, momentum=0.0)
  expected, whole = single(variables, x, **call)
  assert np.isfinite(y).all()
  np.testing.assert_allclose(y, expected, 1e-5, 1e-5)
  visible = np.asarray(x, np.float64)[kept[:, 0]]
  for statistics in (moved, whole):
    statistics = _named(statistics)
    np.testing.assert_allclose(statistics['mean'], visible.mean(0), 1e-6)
    np.testing.assert_allclose(statistics['var'], visible.var(0), 1e-6)
  _, flax = run(family.flax)  # averages the devices' means
  assert not np.allclose(_named(flax)['mean'], visible.mean(0), 0.05)


def _named(variables):
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  names = [jax.tree_util.keystr(path, simple=True) for path, _ in leaves]
  return {
    key: leaf
    for key in ('mean', 'var')
    for name, (_, leaf) in zip(names, leaves, strict=True)
    if key in name
  }
