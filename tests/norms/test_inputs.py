"""Moments of what a kernel multiplies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_research import norms
from bn_research.norms.inputs import layer_inputs as inputs
from tests.oracles import patches


def check(moments, rows):
  """Holds moments against those of the rows of a matrix."""
  d = rows.shape[1]
  assert [leaf.shape for leaf in moments] == [(d,), (d,), (1, d, d)]
  count, mean, comoment = patches.moments(rows)
  np.testing.assert_array_equal(moments.count, count)
  np.testing.assert_allclose(moments.mean, mean, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    moments.comoment[0], comoment, rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize('shape', [(32, 5), (4, 8, 5)])
def test_features(shape):
  x = np.random.default_rng(0).normal(size=shape) + 3
  moments = inputs.input_moments(jnp.asarray(x, jnp.float32))
  check(moments, x.reshape(-1, 5))


def test_patches():
  x = np.random.default_rng(0).normal(size=(4, 7, 6, 3)) + 1
  moments = inputs.input_moments(
    jnp.asarray(x, jnp.float32), norms.Patches((2, 3), (2, 1), 'SAME')
  )
  rows = patches.patches(x, (2, 3), (2, 1), 'SAME')
  check(moments, rows.reshape(-1, 18))


def test_no_gradient_flows_through_them():
  def total(x):
    return sum(leaf.sum() for leaf in inputs.input_moments(x))

  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
  np.testing.assert_array_equal(jax.grad(total)(x), 0)


@pytest.mark.parametrize('spec', [P('i', None, None, 'j'), P(None, 'i', 'j')])
def test_patches_over_an_explicit_mesh(spec):
  x = np.random.default_rng(0).normal(size=(4, 4, 4, 2)).astype('float32')
  measure = lambda x: inputs.input_moments(
    x, norms.Patches((3, 2), padding='SAME')
  )
  kinds = (AxisType.Explicit,) * 2
  mesh = jax.make_mesh((2, 2), ('i', 'j'), kinds, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    spread = jax.jit(measure)(jax.device_put(x, NamedSharding(mesh, spec)))
  for ours, right in zip(spread, measure(x), strict=True):
    np.testing.assert_allclose(ours, right, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('kind', ['features', 'patches'])
def test_over_devices(kind):
  """In a map over devices, the moments are those of all of them."""
  shape = (16, 3) if kind == 'features' else (16, 5, 4, 2)
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape) + 3, jnp.float32)

  def measure(x, axis_name=None):
    if kind == 'features':
      return inputs.input_moments(x, norms.Batch(axis_name=axis_name))
    scope = norms.Patches((3, 2), padding='SAME', axis_name=axis_name)
    return inputs.input_moments(x, scope)

  spread = jax.vmap(partial(measure, axis_name='i'), axis_name='i')
  parts = jax.jit(spread)(x.reshape(4, 4, *shape[1:]))
  whole = measure(x)
  for part, right in zip(parts, whole, strict=True):
    right = np.broadcast_to(right, part.shape)
    np.testing.assert_allclose(part, right, rtol=1e-5, atol=1e-4)
