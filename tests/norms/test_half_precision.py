"""Activations of 16 bits in and out; statistics and parameters of 32."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms
from tests import rows
from tests.normalizations import each, each_that_remembers
from tests.oracles import Past
from tests.quick import some

halves = pytest.mark.parametrize('dtype', some(['bfloat16'], ['float16']))


def prepared(row, dtype):
  """Activations of 16 bits, parameters of 32."""
  sample = rows.cast(row.sample(), 'float32')
  return sample._replace(x=sample.x.astype(dtype))


def wide(tree):
  return jax.tree.map(lambda leaf: np.asarray(leaf, 'float64'), tree)


@halves
@each
def test_only_the_result_is_rounded(row, dtype):
  """Also where the user forbids silent promotion of types and ranks."""
  sample, mask = prepared(row, dtype), row.mask('rows')
  right = row.expected(wide(sample), mask)
  with jax.numpy_dtype_promotion('strict'):
    y, _ = rows.call(row.make(), sample, row.init(), mask)
  assert y.dtype == dtype
  half_ulp = float(jnp.finfo(dtype).eps) / 2
  np.testing.assert_allclose(
    wide(y), right, rtol=1.02 * half_ulp, atol=1e-4 if row.joint else 1e-5
  )


@each
def test_a_wider_result_is_not_rounded_before(row):
  """What activations cast to it give; gradients are in the type of these.

  To the last digits of float32: the two are programs of their own.
  """
  sample, mask, norm = prepared(row, 'bfloat16'), row.mask('rows'), row.make()
  cast = rows.cast(sample, 'float32')

  def result(sample, **dtype):
    y, _ = rows.call(norm, sample, row.init(), mask, **dtype)
    return jnp.sum(jnp.sin(y)), y

  of = jax.jit(jax.grad(result, has_aux=True), static_argnames='dtype')
  (gradient, y), (right, expected) = of(sample, dtype='float32'), of(cast)
  assert y.dtype == expected.dtype == jnp.float32
  assert np.isfinite(expected).all()
  np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
  assert gradient.x.dtype == sample.x.dtype
  # Of whitening the paths to x, each rounded, are larger than their sum.
  ulps = (6 if row.joint else 2) * float(jnp.finfo('bfloat16').eps)
  size = 1 + np.abs(right.x).max()
  np.testing.assert_allclose(
    wide(gradient.x), right.x, rtol=0, atol=ulps * size
  )


@each
def test_a_narrower_result_is_rounded_once(row):
  sample, mask = rows.cast(row.sample(), 'float32'), row.mask('rows')
  call = lambda **dtype: rows.call(
    row.make(), sample, row.init(), mask, **dtype
  )
  y, exact = call(dtype='bfloat16')[0], call()[0]
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, exact.astype('bfloat16'))


PARTS = (norms.batch_norm(), norms.batch_whitening('zca', epsilon=1e-2))
COMBINED = {
  'chain': norms.Chain(PARTS),
  'mixture': norms.Mixture(PARTS),
  'coloured': norms.Coloured(norms.batch_norm()),
}


@pytest.mark.parametrize(
  ('name', 'types'),
  some(
    [('chain', ('bfloat16', 'bfloat16')), ('mixture', ('float32', 'bfloat16'))],
    itertools.product(
      COMBINED,
      (
        ('bfloat16', 'bfloat16'),
        ('bfloat16', 'float32'),
        ('float32', 'bfloat16'),
      ),
    ),
  ),
)
def test_combinations_round_at_their_end(name, types):
  """Two programs differ in a last digit; what was rounded twice, in many."""
  x_type, dtype = types
  norm = COMBINED[name]
  x = jax.random.normal(jax.random.key(0), (128, 4)).astype(x_type)
  rng = np.random.default_rng(0)
  learned, state = norm.learned(4), norm.init(4)
  learned = jax.tree.map(
    lambda leaf: jnp.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), 'f'),
    learned,
  )
  with jax.numpy_dtype_promotion('strict'):
    y, _ = norm.apply(x, state, learned=learned, dtype=dtype)
  exact, _ = norm.apply(x.astype('float32'), state, learned=learned)
  assert y.dtype == dtype
  assert np.isfinite(exact).all()
  if dtype == 'float32':
    np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-5)
  else:
    assert np.mean(np.asarray(y) != np.asarray(exact.astype(dtype))) < 0.02


@halves
@each
def test_gradients_are_those_of_float32_rounded(row, dtype):
  sample, mask, norm = prepared(row, dtype), row.mask('rows'), row.make()
  weights = jnp.asarray(row.sample(seed=1).x, dtype).astype('float32')

  def loss(sample):
    y, _ = rows.call(norm, sample, row.init(), mask)
    return jnp.sum(weights * y.astype('float32'))

  grad = jax.jit(jax.grad(loss))
  actual, right = grad(sample), grad(rows.cast(sample, 'float32'))
  kind = lambda leaf: leaf.dtype
  assert jax.tree.map(kind, actual) == jax.tree.map(kind, sample)
  # The paths to x through value and statistics are rounded apart, then summed.
  ulp = float(jnp.finfo(dtype).eps)

  def close(a, b, tolerance):
    assert np.isfinite(b).all()
    size = 1 + np.abs(b).max()
    np.testing.assert_allclose(wide(a), wide(b), rtol=0, atol=tolerance * size)

  close(actual.x, right.x, 2 * ulp)
  for a, b in zip(*map(jax.tree.leaves, (actual[1:], right[1:])), strict=True):
    close(a, b, 2e-5)


@halves
@each_that_remembers
def test_what_is_remembered_is_float32(row, dtype):
  """Mean 5 and deviation 0.01, of which bfloat16 has half a dozen values."""
  norm, sample = row.make(), prepared(row, dtype)
  sample = sample._replace(x=(5 + 0.01 * sample.x).astype(dtype))
  _, state = rows.call(norm, sample, row.init())
  assert state.mean.dtype == state.var.dtype == jnp.float32
  mean, var = row.remember([(wide(sample.x), True)])
  np.testing.assert_allclose(state.mean, mean, rtol=1e-6)
  # Of a root, not of a variance, the elements are large.
  size = np.abs(var).max()
  np.testing.assert_allclose(state.var, var, rtol=1e-5, atol=1e-4 * size)
  y, _ = rows.call(norm, sample, state, use_running=True, update=False)
  past = Past(*wide(state[:2]))
  right = row.expected(wide(sample), None, past, row.running)
  ulp = float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(wide(y), right, rtol=ulp, atol=1e-3)
