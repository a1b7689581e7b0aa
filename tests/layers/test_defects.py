"""Where Flax is wrong: ours against float64, beside what Flax gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from bn_research.layers import linen as our_linen
from bn_research.layers import nnx as our_nnx


def _draw(shape, mean, std, dtype=jnp.float32):
  random = np.random.default_rng(0)
  return jnp.asarray(random.normal(mean, std, shape), dtype)


@pytest.mark.parametrize('axes', [(-1,), (2, -1), (0, 1, 2)])
def test_group_norm_of_nnx_over_any_axes(axes):
  x = _draw((4, 6, 8), 1, 2)
  y = our_nnx.GroupNorm(8, 4, reduction_axes=axes, rngs=nnx.Rngs(0))(x)
  reference = linen.GroupNorm(4, reduction_axes=axes, use_fast_variance=False)
  expected = reference.apply(reference.init(jax.random.key(0), x), x)
  assert np.isfinite(y).all()
  np.testing.assert_allclose(y, expected, 1e-5, 1e-5)
  if axes == (-1,):
    wrong = nnx.GroupNorm(8, 4, reduction_axes=axes, rngs=nnx.Rngs(0))(x)
    assert np.max(np.abs(wrong - expected)) > 1  # else this note is history


def test_a_narrow_type_rounds_the_result_only():
  """Mean 5, deviation 0.01: in bfloat16 nothing is left to normalize."""
  x = _draw((512, 8), 5, 0.01)
  exact = np.asarray(x, np.float64)
  expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
  layer = our_nnx.BatchNorm(8, dtype=jnp.bfloat16, momentum=0, rngs=nnx.Rngs(0))
  y = layer(x)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-3
  )
  np.testing.assert_allclose(layer.mean[...], exact.mean(0), 1e-6)
  np.testing.assert_allclose(layer.var[...], exact.var(0), 1e-5)
  layer.eval()
  np.testing.assert_allclose(
    np.asarray(layer(x), np.float64), expected, rtol=2**-8, atol=1e-3
  )
  flax = nnx.BatchNorm(8, dtype=jnp.bfloat16, momentum=0, rngs=nnx.Rngs(0))
  nnx.update(flax, nnx.state(layer))
  flax.eval()
  assert np.mean(np.asarray(flax(x), np.float32) == 0) > 0.5


@pytest.mark.parametrize('ratio', [1e2, 1e4])
@pytest.mark.parametrize(
  ('name', 'axes'),
  [('BatchNorm', (0, 1)), ('LayerNorm', 2), ('InstanceNorm', 1)],
)
def test_the_variance_is_stable(family, train, name, axes, ratio):
  x = _draw((4, 64, 32), ratio, 1)
  exact = np.asarray(x, np.float64)
  center = exact.mean(axes, keepdims=True)
  deviation = np.sqrt(exact.var(axes, keepdims=True) + 1e-5)
  ours, variables = family.make(family.ours, name, 32, x, epsilon=1e-5)
  y, _ = ours(variables, x, **train(name))
  assert np.isfinite(y).all()
  # The float32 mean itself is off by ratio times 6e-8.
  np.testing.assert_allclose(
    np.asarray(y), (exact - center) / deviation, 2e-5, 3e-7 * ratio
  )
  spread = np.std(np.asarray(y, np.float64), axes)
  np.testing.assert_allclose(spread, 1, atol=1e-4)
  flax, _ = family.make(family.flax, name, 32, x, epsilon=1e-5)
  wrong = np.std(np.asarray(flax(variables, x, **train(name))[0]), axes)
  assert ratio < 1e4 or np.max(np.abs(wrong - 1)) > 0.1


def test_statistics_that_are_not_finite_are_not_learned():
  x = _draw((6, 8), 1, 2)
  for bad in (x.at[0, 0].set(jnp.inf), x.at[2, 3].set(jnp.nan)):
    layer = our_nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    layer(bad)
    np.testing.assert_array_equal(layer.mean[...], np.zeros(8))
    np.testing.assert_array_equal(layer.var[...], np.ones(8))
  flax = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
  flax(x.at[0, 0].set(jnp.inf))
  assert not np.isfinite(flax.var[...]).all()


def test_linen_layers_of_examples_initialize_outside_of_the_map():
  x = _draw((4, 8), 1, 2)
  with pytest.raises(NameError):
    linen.LayerNorm(axis_name='model').init(jax.random.key(0), x)
  layer = our_linen.LayerNorm(axis_name='model')
  variables = layer.init(jax.random.key(0), x)
  halves = jnp.stack(jnp.split(x, 2, -1))
  scale = {'params': jax.tree.map(lambda a: a[:4], variables['params'])}
  y = jax.vmap(lambda x: layer.apply(scale, x), axis_name='model')(halves)
  whole = our_linen.LayerNorm()
  expected = whole.apply(whole.init(jax.random.key(0), x), x)
  assert np.isfinite(y).all()
  np.testing.assert_allclose(jnp.concatenate(y, -1), expected, 1e-5, 1e-5)


def test_channels_of_groups_may_be_sharded_on_an_explicit_mesh():
  mesh = jax.make_mesh(
    (4, 2), ('data', 'model'), axis_types=(AxisType.Explicit,) * 2
  )
  x = _draw((4, 3, 4, 8), 1, 2)
  layer = our_nnx.GroupNorm(8, 2, rngs=nnx.Rngs(0))
  with jax.set_mesh(mesh):
    sharded = jax.device_put(x, P('data', None, None, 'model'))
    y = nnx.jit(lambda layer, x: layer(x))(layer, sharded)
    with pytest.raises(ValueError, match='sharding'):
      nnx.GroupNorm(8, 2, rngs=nnx.Rngs(0))(sharded)
  assert np.isfinite(y).all()
  np.testing.assert_allclose(np.asarray(y), layer(x), 1e-5, 1e-5)
