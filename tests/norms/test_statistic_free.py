"""What normalizes weights or thresholds, against the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms


def kernel(shape=(3, 3, 4, 5)):
  return np.random.default_rng(0).normal(1, 2, shape)


def columns(kernel):
  """Each output with all its inputs."""
  return kernel.reshape(-1, kernel.shape[-1]).T


@pytest.mark.parametrize('shape', [(3, 3, 4, 5), (7, 5)])
def test_weight_standardization(shape, x64):
  """Qiao et al. (2019), equation 5."""
  gain = np.linspace(0.5, 2, 5)
  actual = norms.weight_standardization(
    jnp.asarray(kernel(shape)), jnp.asarray(gain), epsilon=1e-3
  )
  assert actual.shape == shape
  for own, scale, found in zip(
    columns(kernel(shape)), gain, columns(np.asarray(actual)), strict=True
  ):
    right = scale * (own - own.mean()) / np.sqrt(own.var() + 1e-3)
    np.testing.assert_allclose(found, right, rtol=1e-12)


@pytest.mark.parametrize('shape', [(3, 3, 4, 5), (7, 5)])
def test_weight_norm(shape, x64):
  """Salimans and Kingma (2016), equations 2 and 3: value and gradient."""
  length, v = np.linspace(0.5, 2, 5), kernel(shape)
  weights = np.random.default_rng(1).normal(size=shape)

  def loss(v, length):
    return jnp.sum(weights * norms.weight_norm(v, length, epsilon=0.0))

  dv, dlength = jax.grad(loss, argnums=(0, 1))(jnp.asarray(v), length)
  actual = norms.weight_norm(jnp.asarray(v), jnp.asarray(length), epsilon=0.0)
  assert actual.shape == shape
  for c in range(5):
    own, g, size = columns(v)[c], columns(weights)[c], length[c]
    norm = np.sqrt(sum(own**2))
    right = size * own / norm
    np.testing.assert_allclose(
      columns(np.asarray(actual))[c], right, rtol=1e-12
    )
    slope = g @ own / norm
    np.testing.assert_allclose(dlength[c], slope, rtol=1e-12)
    right = size / norm * g - size * slope / norm**2 * own
    np.testing.assert_allclose(columns(np.asarray(dv))[c], right, rtol=1e-10)


def test_thresholded_linear_unit():
  """Singh and Krishnan (2020), equation 4: max(y, τ), τ for each channel."""
  x, threshold = (
    jnp.asarray([[-1.0, 0.5], [2.0, -3.0]]),
    jnp.asarray([0.0, -1.0]),
  )
  y = norms.thresholded_linear_unit(x, threshold)
  np.testing.assert_array_equal(y, [[0.0, 0.5], [2.0, -1.0]])


def test_absolute_scale_hands_back_what_was_taken_away(x64):
  """Mean and log deviation make the activations whole again."""
  x = np.random.default_rng(0).normal(3, 2, (6, 4))
  norm = norms.layer_norm(epsilon=1e-6)
  y, _ = norm.apply(jnp.asarray(x))
  mean, log_deviation = jnp.moveaxis(
    norms.absolute_scale(norm.measure(jnp.asarray(x)), 1e-6), -1, 0
  )
  np.testing.assert_allclose(y * np.exp(log_deviation) + mean, x, rtol=1e-12)


def test_initial_values_are_those_of_the_papers():
  assert norms.dynamic_tanh().learned(3) == {'alpha': 0.5}
  assert norms.dynamic_erf(0.8).learned(3) == {
    'alpha': jnp.float32(0.8),
    'shift': 0.0,
  }
  for norm in (norms.EvoNormB0(), norms.EvoNormS0(2)):
    np.testing.assert_array_equal(norm.learned(4)['v'], np.ones(4))
