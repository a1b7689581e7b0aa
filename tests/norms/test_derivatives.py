"""Derivatives in both modes, to second order: of the oracle, by differences.

A first derivative is held against differences of the oracle. A second one is
held against differences of the first, which has just been shown to be right.
Methods that stop a gradient are held against a plain formula that stops it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests import oracles, rows
from tests.normalizations import each


def difference(f, t=3e-4):
  """f'(0) by the five-point rule with step `t`; the error is of order t⁴."""
  near, far = f(t) - f(-t), f(2 * t) - f(-2 * t)
  return (8 * near - far) / (12 * t)


class Problem:
  """A nonlinear loss of a normalization, after one update of what it knows."""

  def __init__(self, row, mask):
    self.row, self.sample, self.mask = row, row.sample(), row.mask(mask)
    self.weights = np.random.default_rng(1).normal(size=row.shape)
    self.norm, self.state, self.past = row.make(), row.init(), None
    if row.remember:
      earlier = row.sample(seed=5)
      _, self.state = rows.call(
        self.norm, rows.cast(earlier, 'float64'), self.state
      )
      self.past = oracles.Past(*row.remember([(earlier.x, True)]), 1)

  def loss(self, sample):
    y, _ = rows.call(self.norm, sample, self.state, self.mask)
    return jnp.sum(self.weights * jnp.sin(y))

  def oracle_loss(self, sample):
    y = self.row.expected(sample, self.mask, self.past)
    return np.sum(self.weights * np.sin(y))

  def formula_loss(self, sample):
    mask = True if self.mask is None else self.mask
    y = self.row.derivative(sample.x, mask, rows.EPSILON, self.past)
    y = jnp.where(mask, y * sample.scale + sample.bias, 0)
    return jnp.sum(self.weights * jnp.sin(y))

  def direction(self, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.normal(size=a.shape), self.sample)


def moved(sample, direction, t):
  return jax.tree.map(lambda a, d: a + t * d, sample, direction)


def dot(a, b):
  return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def close(actual, expected, tolerance):
  assert np.isfinite(actual).all()
  size = 1 + np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * size)


def derivatives(loss, direction):
  """Gradient; derivative along `direction`; and Hessian times it, twice."""
  grad = jax.grad(loss)

  def all_of_them(sample):
    _, along = jax.jvp(loss, (sample,), (direction,))
    _, forward = jax.jvp(grad, (sample,), (direction,))
    reverse = jax.grad(lambda sample: dot(grad(sample), direction))(sample)
    return grad(sample), along, forward, reverse

  return jax.jit(all_of_them)


def close_to_first_order(problem, gradient):
  if problem.row.derivative:
    sample = rows.cast(problem.sample, 'float64')
    right = jax.jit(jax.grad(problem.formula_loss))(sample)
    close(flat(gradient), flat(right), 1e-12)
    return
  for u in map(problem.direction, range(4)):
    line = lambda t, u=u: problem.oracle_loss(moved(problem.sample, u, t))
    close(dot(gradient, u), difference(line), 1e-8)


@each
def test_first_and_second_order(row, x64):
  problem = Problem(row, 'entries')
  sample, v = rows.cast(problem.sample, 'float64'), problem.direction(0)
  gradient, along, *products = derivatives(problem.loss, v)(sample)
  close(along, dot(gradient, v), 1e-13)
  close_to_first_order(problem, gradient)
  if row.derivative:
    right = flat(derivatives(problem.formula_loss, v)(sample)[2])
  else:
    grad = jax.jit(jax.grad(problem.loss))
    right = difference(lambda t: flat(grad(moved(sample, v, t))))
  for product in products:
    close(flat(product), right, 1e-8)


@each
def test_first_order_without_a_mask(row, x64):
  problem = Problem(row, 'none')
  sample = rows.cast(problem.sample, 'float64')
  gradient = jax.jit(jax.grad(problem.loss))(sample)
  close_to_first_order(problem, gradient)
