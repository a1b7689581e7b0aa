"""Types of results, of statistics and of what lies between."""

import functools
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from bn_research import norms
from bn_research.layers import linen as our_linen
from bn_research.layers import nnx as our_nnx
from tests.quick import some

_GRID = [
  # activations, parameters, dtype
  ('float32', 'float32', 'bfloat16'),
  ('float32', 'bfloat16', None),
  ('bfloat16', 'float32', None),
  ('bfloat16', 'bfloat16', None),
  ('bfloat16', 'float32', 'bfloat16'),
  ('bfloat16', 'float32', 'float16'),
  ('float16', 'float16', None),
  ('float16', 'float32', 'float16'),
]


def _draw(shape, dtype, mean=0.5):
  random = np.random.default_rng(0)
  return jnp.asarray(random.normal(mean, 2, shape), dtype)


def _unpromoted(arrays, dtype):
  """What to give Flax's nnx as `promote_dtype` for float32 statistics."""
  del dtype
  return arrays


@pytest.mark.parametrize(
  'name',
  [
    'BatchNorm',
    'RMSNorm',
    pytest.param('GroupNorm', marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize(('x_type', 'param_dtype', 'dtype'), _GRID)
def test_types_and_values(
  family, pair, train, together, name, x_type, param_dtype, dtype
):
  x = _draw((4, 6, 32), x_type)
  options = {'param_dtype': jnp.dtype(param_dtype)}
  if dtype:
    options['dtype'] = jnp.dtype(dtype)
  is_nnx = family.flax.__name__ == 'flax.nnx'
  exact = {'promote_dtype': _unpromoted} if is_nnx and dtype else {}
  ours, flax, variables = pair(name, x, flax_only=exact, **options)
  (y, moved), (reference, flax_moved) = together(
    lambda f, *a: f(*a, **train(name)), ours, flax, variables, x
  )
  assert y.dtype == reference.dtype
  if name != 'GroupNorm':
    np.testing.assert_array_equal(y, reference)
  # One rounding each, of values that may differ in their last float32 bit.
  eps = float(ml_dtypes.finfo(y.dtype).eps)
  y, reference = (np.asarray(a, np.float32) for a in (y, reference))
  assert np.isfinite(y).all()
  np.testing.assert_allclose(y, reference, max(eps, 2e-6), 3e-6)
  for a, b in zip(*map(jax.tree.leaves, (moved, flax_moved)), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(
      np.asarray(a, np.float32), np.asarray(b, np.float32), 2e-6
    )


@pytest.mark.parametrize(
  ('x_type', 'param_dtype', 'dtype'), some(_GRID[3:5], _GRID)
)
def test_a_norm_has_the_types_of_a_layer_of_flax(
  family, x_type, param_dtype, dtype
):
  x = _draw((4, 6, 8), x_type)
  types = {'param_dtype': jnp.dtype(param_dtype)}
  if dtype:
    types['dtype'] = jnp.dtype(dtype)
  normalization = norms.batch_norm()
  if family.flax is nnx:
    norm = our_nnx.Norm(normalization, 8, **types, rngs=nnx.Rngs(0))
    y, scale = norm(x), norm.scale[...]
  else:
    norm = our_linen.Norm(normalization, use_running_average=False, **types)
    y, variables = norm.init_with_output(jax.random.key(0), x)
    scale = variables['params']['scale']
  layer, variables = family.make(family.ours, 'BatchNorm', 8, x, **types)
  expected, _ = layer(variables, x, use_running_average=False)
  reference, variables = family.make(family.flax, 'BatchNorm', 8, x, **types)
  flax_result, _ = reference(variables, x, use_running_average=False)
  assert y.dtype == flax_result.dtype
  assert scale.dtype == param_dtype
  y, expected = (np.asarray(a, np.float32) for a in (y, expected))
  eps = float(ml_dtypes.finfo(flax_result.dtype).eps)
  assert np.isfinite(y).all()
  np.testing.assert_allclose(y, expected, max(eps, 1e-6), 1e-6)


def test_norms_without_parameters_keep_the_type_of_x():
  x = _draw((4, 8), 'bfloat16')
  options = {'use_scale': False, 'use_bias': False}
  norm = our_nnx.Norm(norms.layer_norm(), 8, **options, rngs=nnx.Rngs(0))
  y, _ = our_linen.Norm(norms.layer_norm(), **options).init_with_output(
    jax.random.key(0), x
  )
  assert norm(x).dtype == y.dtype == jnp.bfloat16


def test_gradients_have_the_types_of_their_arguments(
  pair, train, together, close, name
):
  x = _draw((4, 6, 32), 'bfloat16')
  ours, flax, variables = pair(name, x)

  @functools.partial(jax.grad, argnums=(1, 2))
  def gradients(f, variables, x):
    y, _ = f(variables, x, **train(name))
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))

  eps = float(ml_dtypes.finfo(x.dtype).eps)
  close(*together(gradients, ours, flax, variables, x), eps, eps)


def test_a_promote_dtype_of_ones_own_is_called(of_nnx, train, name):
  family = of_nnx
  flax_own = family.flax.nn.dtypes.promote_dtype
  options = {
    'dtype': jnp.bfloat16,
    'promote_dtype': lambda arrays, dtype: flax_own(arrays, dtype=dtype),
  }
  x = _draw((4, 6, 32), 'float32', mean=20)
  ours, variables = family.make(family.ours, name, 32, x, **options)
  options['use_fast_variance'] = False
  flax, _ = family.make(family.flax, name, 32, x, **options)
  y, reference = (f(variables, x, **train(name))[0] for f in (ours, flax))
  assert y.dtype == reference.dtype == jnp.bfloat16
  y, reference = (np.asarray(a, np.float32) for a in (y, reference))
  assert np.isfinite(y).all()
  np.testing.assert_allclose(y, reference, 2**-7, 1e-5)


def test_an_average_starts_from_what_was_stored_and_not_promoted():
  def doubled(arrays, dtype=None):
    del dtype
    return tuple(None if array is None else 2 * array for array in arrays)

  x = _draw((16, 4), 'float32', mean=3)
  means = []
  for batch_norm in (our_nnx.BatchNorm, nnx.BatchNorm):
    layer = batch_norm(4, promote_dtype=doubled, rngs=nnx.Rngs(0))
    for _ in range(2):
      layer(x, use_running_average=False)
    means.append(np.asarray(layer.mean[...], np.float64))
  np.testing.assert_allclose(*means, rtol=1e-6)


def test_force_float32_reductions_is_the_type_of_the_variables(of_linen):
  family = of_linen
  x = _draw((64, 8), 'bfloat16')
  options = {
    'force_float32_reductions': False,
    'param_dtype': jnp.bfloat16,
  }
  ours, variables = family.make(family.ours, 'BatchNorm', 8, x, **options)
  flax, flax_variables = family.make(family.flax, 'BatchNorm', 8, x, **options)
  for _ in range(2):
    _, variables = ours(variables, x, use_running_average=False)
    _, flax_variables = flax(flax_variables, x, use_running_average=False)
  types = [a.dtype for a in jax.tree.leaves(variables)]
  assert types == [a.dtype for a in jax.tree.leaves(flax_variables)]
  for a, b in zip(
    *map(jax.tree.leaves, (variables, flax_variables)), strict=True
  ):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, 0.05, 0.01)


def test_float64_stays_float64(family, train, name):
  with jax.enable_x64(True):
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 6, 32)))
    options = {'use_fast_variance': False}
    ours, variables = family.make(family.ours, name, 32, x)
    flax, _ = family.make(family.flax, name, 32, x, **options)
    y, moved = ours(variables, x, **train(name))
    with warnings.catch_warnings():  # of Flax, that it rounds its statistics
      warnings.simplefilter('ignore', FutureWarning)
      reference, flax_moved = flax(variables, x, **train(name))
    assert y.dtype == reference.dtype == jnp.float64
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y, reference, 1e-12, 1e-12)
    for a, b in zip(*map(jax.tree.leaves, (moved, flax_moved)), strict=True):
      assert a.dtype == b.dtype
      np.testing.assert_allclose(a, b, 2e-7)
