"""Numbers of traced programs, as arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research.training.packing import lifting


def deep(rate, epsilon):
  """Returns a function with both numbers in every kind of inner program."""

  @jax.custom_vjp
  def normalize(x):
    return x / jnp.sqrt(x * x + epsilon)

  normalize.defvjp(lambda x: (normalize(x), x), lambda x, c: (c * x * epsilon,))

  @jax.custom_jvp
  def bend(x):
    return jnp.tanh(rate * x)

  bend.defjvp(lambda x, t: (bend(x[0]), t[0] * rate))

  def body(carry):
    k, y = carry
    y = jax.checkpoint(lambda y: jnp.clip(y, 0.0, rate * 3) + normalize(y))(y)
    y, _ = jax.lax.scan(
      lambda a, b: (0.9 * a + rate * b, a), y, jnp.ones((3, 4))
    )
    y = jax.lax.cond(k > 1, lambda y: y * rate, lambda y: y + epsilon, bend(y))
    y = y + jax.grad(lambda y: (jax.nn.relu(normalize(y)) * rate).sum())(y)
    y = y + jax.grad(jax.checkpoint(lambda y: jnp.sin(rate * y).sum()))(y)
    return k + 1, y

  def function(x, count):
    end = jax.lax.while_loop(lambda c: c[0] < count, body, (0, x))[1]
    return end + np.full(4, epsilon, np.float32), jnp.float32(rate)

  return function


X = jnp.arange(4.0)


def traced(function, *args):
  return jax.jit(function).trace(*args).jaxpr


def numbers(one, two):
  found = list(lifting.differences(one, two))
  return [path for path, *_ in found], [theirs for *_, theirs in found]


@pytest.mark.parametrize('form', ['alone', 'vmap', 'map'])
def test_a_program_with_other_numbers_is_the_other_program(form):
  one, two = deep(0.1, 1e-3), deep(0.2, 1e-2)
  program = traced(one, X, 3)
  paths, values = numbers(program, traced(two, X, 3))
  assert len(paths) > 10

  def evaluate(values):
    return lifting.evaluate(
      program, dict(zip(paths, values, strict=True)), X, 3
    )

  if form == 'alone':
    found = jax.jit(evaluate)(values)
  else:
    many = {'vmap': jax.vmap, 'map': lambda f: lambda x: jax.lax.map(f, x)}
    stacked = [jnp.stack([value] * 2) for value in values]
    found = [x[1] for x in jax.jit(many[form](evaluate))(stacked)]
  for mine, expected in zip(found, jax.jit(two)(X, 3), strict=True):
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(mine, expected, rtol=1e-5)


def test_equal_programs_differ_in_nothing():
  same = deep(0.1, 1e-3)
  assert not list(lifting.differences(traced(same, X, 3), traced(same, X, 3)))


def test_nan_is_no_difference():
  fill = lambda x: jnp.take(x, jnp.array([9]), mode='fill') + jnp.nan
  assert not list(lifting.differences(traced(fill, X), traced(fill, X)))


def of_rate(rate):
  return lambda x: rate * x


def solve(rate):
  def function(x):
    matvec = lambda y: rate * y
    return jax.lax.custom_linear_solve(
      matvec, x, lambda _, b: b / rate, symmetric=True
    )

  return function


def callback(rate):
  return lambda x: jax.pure_callback(lambda x: np.asarray(rate * x), x, x)


@pytest.mark.parametrize(
  ('one', 'two', 'reason'),
  [
    (of_rate(2.0), lambda x: 2.0 + x, 'mul in one is add'),
    (of_rate(2.0), lambda x: 2.0 * x + 1, 'more operations'),
    (of_rate(2.0), lambda x: x * x, 'other operands'),
    (lambda x: x.astype('int32'), lambda x: x.astype('int16'), 'in one is'),
    (lambda x: x[:2].sum(0), lambda x: x[:3].sum(0), 'in one is'),
    (lambda x: x**2, lambda x: x**3, 'y=2 in one is 3'),
    (lambda x: x[np.array([1, 2])], lambda x: x[np.array([1, 2, 3])], 'int'),
    (solve(2.0), solve(3.0), 'numbers within custom_linear_solve'),
    (callback(2.0), callback(3.0), 'callback='),
  ],
)
def test_programs_that_differ_in_more(one, two, reason):
  with pytest.raises(lifting.Different, match=reason):
    list(lifting.differences(traced(one, X), traced(two, X)))
