"""Numbers that break other libraries, each by its name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms
from tests.oracles import sets
from tests.quick import star


def normal(mean, shape=(256, 32), seed=0):
  return np.random.default_rng(seed).normal(mean, 1, shape).astype('float32')


# From float32 activations (256, 32) to the true variance that normalizes each.
VARIANCES = {
  'batch_norm': (norms.batch_norm(), lambda x: x.var(0, keepdims=True)),
  'ghosts': (
    norms.batch_norm(group_size=64),
    lambda x: np.repeat(x.reshape(4, 64, 32).var(1), 64, 0),
  ),
  'layer_norm': (norms.layer_norm(), lambda x: x.var(1, keepdims=True)),
  'group_norm': (
    norms.group_norm(2),
    lambda x: np.repeat(x.reshape(256, 2, 16).var(2), 16, 1),
  ),
}


@pytest.mark.parametrize('mean', [0, 1e2, 1e3, 1e4])
@pytest.mark.parametrize('name', VARIANCES)
def test_a_mean_of_many_deviations(name, mean):
  """The variance of float32 keeps five digits at mean / deviation 10⁴."""
  norm, true = VARIANCES[name]
  x = normal(mean)
  right = true(x.astype('float64'))
  found = norm.measure(jnp.asarray(x)).variance
  np.testing.assert_allclose(
    np.broadcast_to(found, x.shape), np.broadcast_to(right, x.shape), rtol=1e-5
  )


def test_the_fast_variance_of_flax_loses_every_digit_there():
  """Why: E x² - (E x)² is the difference of two numbers of size 10⁸."""
  x = normal(1e4)
  layer = nn.BatchNorm(use_running_average=False, momentum=0.0)
  variables = layer.init(jax.random.key(0), jnp.asarray(x))
  _, changed = layer.apply(variables, jnp.asarray(x), mutable=['batch_stats'])
  error = changed['batch_stats']['var'] / x.astype('float64').var(0) - 1
  assert np.abs(error).max() > 0.5


EPSILON = 1e-5
CASES = {
  'variance zero': np.full((6, 3), 7.25, 'float32'),
  'a constant that is no binary fraction': np.full((6, 3), 0.1, 'float32'),
  'one row': normal(0, (1, 3)),
  'repeated rows': np.repeat(normal(0, (2, 3)), 3, 0),
  'one row of many far away': np.concatenate(
    [normal(0, (5, 3)), np.full((1, 3), 1e6, 'float32')]
  ),
  'large': 1e15 * normal(0, (6, 3)),
  'small': 1e-15 * normal(0, (6, 3)),
  'subnormal': np.full((6, 3), 1e-40, 'float32'),
  'zeros': np.zeros((6, 3), 'float32'),
  'signed zeros': np.array([[0.0], [-0.0]], 'float32'),
}
NORMS = {
  'batch_norm': (norms.batch_norm(0.9, EPSILON), sets.batch),
  'layer_norm': (norms.layer_norm(EPSILON), sets.features),
}


@pytest.mark.parametrize(('name', 'case'), star(NORMS, CASES))
def test_value_and_gradient_are_finite_and_right(name, case):
  norm, labelled = NORMS[name]
  x = CASES[case]
  oracle = sets.over(labelled, sets.standardized)
  right = oracle(x.astype('float64'), np.full(x.shape, True), EPSILON, None)
  state = norm.init(x.shape[-1])
  f = lambda x: norm.apply(x, state)[0]
  y, pullback = jax.vjp(f, jnp.asarray(x))
  (dx,) = pullback(jnp.asarray(normal(0, x.shape, seed=1)))
  assert np.isfinite(y).all()
  assert np.isfinite(dx).all()
  np.testing.assert_allclose(y, right, rtol=1e-5, atol=2e-5)
  # A normalization does not see a shift of its set.
  assert np.abs(pullback(y * 0 + 1)[0]).max() <= 1e-4 * (1 + np.abs(dx).max())


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('name', NORMS)
def test_the_largest_and_smallest_numbers_of_16_bits(name, dtype):
  """Their squares are out of range: statistics must not be of 16 bits."""
  norm, labelled = NORMS[name]
  oracle = sets.over(labelled, sets.standardized)
  info = jnp.finfo(dtype)
  small = float(info.smallest_subnormal)
  large = min(float(info.max), 1e15)
  for size in (small, large):
    x = jnp.asarray(size * np.sign(normal(0, (8, 4))), dtype)
    wide = np.asarray(x, 'float64')
    right = oracle(wide, np.full(x.shape, True), EPSILON, None)
    y, state = norm.apply(x, norm.init(4))
    assert np.isfinite(y.astype('float32')).all()
    np.testing.assert_allclose(y.astype('float32'), right, rtol=0.01, atol=1e-6)
    if state:
      np.testing.assert_allclose(
        state.mean, wide.mean(0), rtol=1e-6, atol=1e-38
      )


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_bad_number_spoils_its_own_set_and_no_other(bad):
  x = normal(0, (6, 3))
  x[2, 1] = bad
  norm = norms.batch_norm()
  y, state = norm.apply(jnp.asarray(x), norm.init(3))
  assert np.isnan(y[:, 1]).all()
  assert np.isfinite(y[:, [0, 2]]).all()
  assert (state.steps, state.skipped) == (0, 1)
  y, _ = norms.layer_norm().apply(jnp.asarray(x))
  assert np.isnan(y[2]).all()
  assert np.isfinite(y[np.arange(6) != 2]).all()


def test_no_variance_is_negative():
  for seed in range(20):
    x = normal(3e4 * seed, (4, 8), seed) * np.float32(1e-3)
    for norm in (norms.batch_norm(), norms.layer_norm(), norms.group_norm(2)):
      assert (norm.measure(jnp.asarray(x)).variance >= 0).all()
