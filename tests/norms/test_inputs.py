"""Moments of what a kernel multiplies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_research.norms.inputs import layer_inputs as inputs
from tests.quick import some


def check(moments, rows):
  """Holds moments against those of the rows of a matrix."""
  d = rows.shape[1]
  assert [leaf.shape for leaf in moments] == [(d,), (d,), (1, d, d)]
  apart = rows - rows.mean(0)
  np.testing.assert_array_equal(moments.count, len(rows))
  np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    moments.comoment[0], apart.T @ apart, rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize('shape', [(32, 5), (4, 8, 5)])
def test_features(shape):
  x = np.random.default_rng(0).normal(size=shape) + 3
  moments = inputs.feature_moments(jnp.asarray(x, jnp.float32))
  check(moments, x.reshape(-1, 5))


def patches_of(x, size, strides, dilation):
  """Returns the rows that a VALID convolution multiplies by its kernel."""
  (kh, kw), (sh, sw), (dh, dw) = size, strides, dilation
  height = (x.shape[1] - (kh - 1) * dh - 1) // sh + 1
  width = (x.shape[2] - (kw - 1) * dw - 1) // sw + 1
  return np.stack(
    [
      x[n, i * sh : i * sh + kh * dh : dh, j * sw : j * sw + kw * dw : dw]
      for n in range(len(x))
      for i in range(height)
      for j in range(width)
    ]
  ).reshape(-1, kh * kw * x.shape[-1])


@pytest.mark.parametrize(
  ('size', 'strides', 'dilation'),
  some(
    [((2, 3), (2, 1), (1, 2))],
    [((1, 1), (1, 1), (1, 1)), ((3, 2), (1, 1), (1, 1))],
  ),
)
def test_patches(size, strides, dilation):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 7, 6, 3)) + 1
  rows = patches_of(x, size, strides, dilation)
  # The rows are those of the convolution, in the order of its kernel.
  kernel = rng.normal(size=(*size, 3, 2))
  y = lax.conv_general_dilated(
    jnp.asarray(x),
    jnp.asarray(kernel),
    strides,
    'VALID',
    rhs_dilation=dilation,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  np.testing.assert_allclose(
    y.reshape(-1, 2), rows @ kernel.reshape(-1, 2), rtol=1e-4, atol=1e-4
  )
  moments = inputs.patch_moments(
    jnp.asarray(x, jnp.float32),
    size,
    strides,
    'VALID',
    kernel_dilation=dilation,
  )
  check(moments, rows)


def test_padding_is_part_of_patches():
  x = np.random.default_rng(0).normal(size=(2, 4, 4, 1)) + 5
  padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
  moments = inputs.patch_moments(
    jnp.asarray(x, jnp.float32), (3, 3), (1, 1), 'SAME'
  )
  check(moments, patches_of(padded, (3, 3), (1, 1), (1, 1)))


def test_no_gradient_flows_through_them():
  def total(x):
    return sum(leaf.sum() for leaf in inputs.feature_moments(x))

  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
  np.testing.assert_array_equal(jax.grad(total)(x), 0)


@pytest.mark.parametrize('spec', [P('i', None, None, 'j'), P(None, 'i', 'j')])
def test_patches_over_an_explicit_mesh(spec):
  x = np.random.default_rng(0).normal(size=(4, 4, 4, 2)).astype('float32')
  measure = lambda x: inputs.patch_moments(x, (3, 2), (1, 1), 'SAME')
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
      return inputs.feature_moments(x, axis_name)
    size, strides = (3, 2), (1, 1)
    return inputs.patch_moments(x, size, strides, 'SAME', axis_name=axis_name)

  spread = jax.vmap(partial(measure, axis_name='i'), axis_name='i')
  parts = jax.jit(spread)(x.reshape(4, 4, *shape[1:]))
  whole = measure(x)
  for part, right in zip(parts, whole, strict=True):
    right = np.broadcast_to(right, part.shape)
    np.testing.assert_allclose(part, right, rtol=1e-5, atol=1e-4)
