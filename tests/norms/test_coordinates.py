"""Whitened coordinates keep the outputs and the meaning of gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research.norms.inputs import coordinates

D, M = 5, 3


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def random(seed, *, use_bias=True):
  """Returns coordinates, and the weights of a layer in the coordinates."""
  rng = np.random.default_rng(seed)
  place = coordinates.Coordinates(
    rng.normal(size=D) * use_bias, rng.normal(size=(D, D))
  )
  kernel, bias = rng.normal(size=(D, M)), rng.normal(size=M)
  weights = coordinates.Affine(kernel, bias if use_bias else None)
  return jax.tree.map(jnp.asarray, (place, weights))


def outputs(place, weights, x):
  z = (x - place.mean) @ place.basis @ weights.kernel
  return z if weights.bias is None else z + weights.bias


@pytest.mark.parametrize('use_bias', [True, False])
def test_a_move_keeps_what_the_layer_computes(x64, use_bias):
  x = np.random.default_rng(0).normal(size=(20, D)) + 3
  old, weights = random(1, use_bias=use_bias)
  new, _ = random(2, use_bias=use_bias)
  moved = coordinates.move(weights, old, new)
  assert not np.allclose(moved.kernel, weights.kernel, atol=0.1)
  np.testing.assert_allclose(
    outputs(new, moved, x), outputs(old, weights, x), rtol=1e-11, atol=1e-11
  )


def test_in_canonical_coordinates_a_layer_is_dense(x64):
  old, weights = random(1)
  kernel, bias = coordinates.move(weights, old, coordinates.canonical(D))
  np.testing.assert_allclose(kernel, old.basis @ weights.kernel)
  np.testing.assert_allclose(bias, weights.bias - old.mean @ kernel)


@pytest.mark.parametrize('use_bias', [True, False])
def test_a_carried_gradient_is_that_of_the_moved_layer(x64, use_bias):
  x = np.random.default_rng(0).normal(size=(20, D)) + 3
  old, weights = random(1, use_bias=use_bias)
  new, _ = random(2, use_bias=use_bias)

  def gradient(place, weights):
    return jax.grad(lambda w: jnp.sin(outputs(place, w, x)).sum())(weights)

  carried = coordinates.carry(gradient(old, weights), old, new)
  direct = gradient(new, coordinates.move(weights, old, new))
  for a, b in zip(carried, direct, strict=True):
    if b is not None:
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('matrix', [True, False])
def test_without_a_bias_moments_are_about_zero(matrix):
  x = np.random.default_rng(0).normal(size=(50, D)) + 2
  mean, cov = x.mean(0), np.cov(x.T, ddof=0)
  second = x.T @ x / len(x)
  if not matrix:
    cov, second = np.diag(cov), np.diag(second)
  about_mean = coordinates.second_moments(mean, cov, True)
  about_zero = coordinates.second_moments(mean, cov, False)
  np.testing.assert_allclose(about_mean[0], mean)
  np.testing.assert_allclose(about_mean[1], cov)
  np.testing.assert_allclose(about_zero[0], np.zeros(D))
  np.testing.assert_allclose(about_zero[1], second, rtol=1e-6)
