"""The floor under a spectrum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research.norms import roots
from bn_research.norms.roots import eigen
from tests.quick import some


def rotated(values, seed=0):
  size = len(values)
  vectors = np.linalg.qr(
    np.random.default_rng(seed).standard_normal((size, size))
  )[0]
  matrix = (vectors * np.asarray(values)) @ vectors.T
  return (matrix + matrix.T) / 2


def floored(matrix, floor):
  values, vectors = np.linalg.eigh(matrix)
  values = np.maximum(values, floor * values.mean())
  return (vectors * values) @ vectors.T


def of_the_mean(matrix, floor):
  """The floor in units of the mean eigenvalue. The mean has a derivative."""
  least = floor * jnp.trace(matrix, axis1=-2, axis2=-1) / matrix.shape[-1]
  return eigen.floor_spectrum(matrix, least[..., None, None])


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def test_raises_small_eigenvalues_and_no_others(x64):
  batch = np.stack([rotated([4, 1, 1e-3, 0]), rotated([3, 2, 2, 1])])
  actual = of_the_mean(batch, 0.1)
  for matrix, result in zip(batch, actual, strict=True):
    np.testing.assert_allclose(result, floored(matrix, 0.1), atol=1e-14)
  np.testing.assert_allclose(actual[1], batch[1], atol=1e-14)


@pytest.mark.parametrize(
  'values',
  some([[4, 1, 0, 0], [1, 1, 1, 1]], [[4, 1, 1e-3, 0], [2, 2, 1e-3, 1e-3]]),
)
def test_derivatives(x64, values):
  matrix = rotated(values)
  directions = np.random.default_rng(1).standard_normal((2, 4, 4))
  u, v = directions + np.swapaxes(directions, 1, 2)
  f = lambda s: of_the_mean(s, 0.1)
  tangent = jax.jit(lambda s: jax.jvp(f, (s,), (u,))[1])
  step = 1e-5
  expected = floored(matrix + step * u, 0.1) - floored(matrix - step * u, 0.1)
  expected /= 2 * step
  np.testing.assert_allclose(tangent(matrix), expected, atol=1e-8)
  weights = np.random.default_rng(2).standard_normal((4, 4))
  gradient = jax.grad(lambda s: jnp.sum(weights * f(s)))(matrix)
  np.testing.assert_allclose(
    np.sum(gradient * u), np.sum(weights * expected), atol=1e-8
  )
  second = jax.jit(lambda s: jax.jvp(tangent, (s,), (v,))[1])(matrix)
  expected = tangent(matrix + step * v) - tangent(matrix - step * v)
  np.testing.assert_allclose(second, expected / (2 * step), atol=1e-6)


@pytest.mark.slow
def test_an_eigenvalue_on_the_floor_has_a_finite_gradient(x64):
  f = lambda s: jnp.sum(of_the_mean(s, 0.5)[0])
  gradient = jax.grad(f)(np.diag([1.5, 0.5]))
  assert np.isfinite(gradient).all()


def test_rank_deficient_covariances_can_be_whitened():
  rows = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
  matrix = of_the_mean(rows.T @ rows / 4, 1e-3)
  for method in roots.METHODS:
    root = roots.inverse_sqrt(matrix, method)
    assert roots.residual(root, matrix) < 1e-2
