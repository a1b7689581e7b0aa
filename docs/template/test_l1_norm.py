"""Tests of a norm: against NumPy, differences, groups, devices and masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads
from l1_norm import l1_batch_norm

from bn_research import norms

X = np.random.default_rng(0).normal(3, 2, (12, 4))
NORM = l1_batch_norm(epsilon=1e-5, momentum=0.9)


def oracle(x):
  """The formula in float64, with NumPy only."""
  apart = x - x.mean(0)
  deviation = np.sqrt(np.pi / 2) * np.abs(apart).mean(0)
  return apart / np.sqrt(deviation**2 + 1e-5)


def value(norm, x, **options):
  """Returns the result for a batch, in training."""
  return norm.apply(x, norm.init(x.shape[-1]), **options)[0]


def with_scope(scope):
  """Returns the norm with a different scope."""
  return dataclasses.replace(NORM, scope=scope)


def test_values():
  """The result is the formula."""
  x = jnp.asarray(X, jnp.float32)
  np.testing.assert_allclose(value(NORM, x), oracle(X), atol=1e-5)


def test_gradients():
  """Derivatives equal finite differences, in both modes."""
  with jax.enable_x64(True):
    loss = lambda x: jnp.sum(jnp.sin(value(NORM, x)))
    check_grads(jax.jit(loss), (jnp.asarray(X),), order=1, eps=1e-5)


def test_ghost_batches():
  """Each group of 6 rows is normalized alone."""
  ghost = with_scope(norms.Batch(group_size=6))
  x = jnp.asarray(X, jnp.float32)
  expected = np.concatenate([oracle(X[:6]), oracle(X[6:])])
  np.testing.assert_allclose(value(ghost, x), expected, atol=1e-5)


def test_devices():
  """Four devices together give the statistics of the whole batch."""
  # `vmap` with a name of the axis acts as four devices with 3 rows each.
  norm = with_scope(norms.Batch(axis_name='devices'))
  shares = jnp.asarray(X, jnp.float32).reshape(4, 3, 4)
  y = jax.vmap(lambda x: value(norm, x), axis_name='devices')(shares)
  np.testing.assert_allclose(y.reshape(12, 4), oracle(X), atol=1e-5)


def test_masks():
  """A masked row takes no part, and gives 0."""
  x = jnp.asarray(X, jnp.float32).at[6:].set(jnp.nan)
  y = value(NORM, x, mask=np.arange(12)[:, None] < 6)
  np.testing.assert_allclose(y[:6], oracle(X[:6]), atol=1e-5)
  assert (y[6:] == 0).all()


def test_inference():
  """The remembered moments give the same result."""
  x = jnp.asarray(X, jnp.float32)
  _, state = NORM.apply(x, NORM.init(4))
  y, after = NORM.apply(x, state, use_running=True, update=False)
  # After a single update, the debiased average is the moments of the batch.
  np.testing.assert_allclose(y, oracle(X), atol=1e-5)
  assert after is state
