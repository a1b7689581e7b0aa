"""Operations by formula, beside counts by hand and beside XLA's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bn_research.training.costs import flops


def of(function, *shapes):
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return flops.count(jax.make_jaxpr(function)(*args))


def convolve(x, kernel, strides=(1, 1), groups=1):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


@pytest.mark.parametrize(
  ('expected', 'function', 'shapes'),
  [
    (2 * 3 * 4 * 5, jnp.matmul, [(3, 4), (4, 5)]),
    (7 * 2 * 3 * 4 * 5, jnp.matmul, [(7, 3, 4), (7, 4, 5)]),
    (2 * (2 * 8 * 8 * 5) * (3 * 3 * 4), convolve, [(2, 8, 8, 4), (3, 3, 4, 5)]),
    (
      2 * (2 * 4 * 4 * 6) * (3 * 3 * 2),
      functools.partial(convolve, strides=(2, 2), groups=2),
      [(2, 8, 8, 4), (3, 3, 2, 6)],
    ),
    (12, lambda x: x + 1, [(3, 4)]),
    (12, lambda x: x.sum(), [(3, 4)]),
    (0, lambda x: x.reshape(4, 3).T[:2], [(3, 4)]),
    (200**3 / 3, lax.linalg.cholesky, [(200, 200)]),
    (
      5 * 2 * 36,
      lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True),
      [(5, 6, 6), (5, 6, 2)],
    ),
    (2 * 9 * 60**3, lax.linalg.eigh, [(2, 60, 60)]),
    (
      10 * 2 * 4**3,
      lambda x: lax.scan(lambda h, _: (h @ h, None), x, None, 10)[0],
      [(4, 4)],
    ),
    (2 * 4**3, lambda x: jax.jit(lambda x: x @ x)(x), [(4, 4)]),
    (2 * 4**3, jax.checkpoint(lambda x: x @ x), [(4, 4)]),
  ],
  ids=lambda value: '' if callable(value) or isinstance(value, list) else None,
)
def test_by_hand(expected, function, shapes):
  # JAX copies a triangle of a factor, and makes a matrix symmetric before.
  assert of(function, *shapes) == pytest.approx(expected, rel=0.07)


def test_a_convolution_costs_three_times_with_its_gradients():
  """The gradient of a stride fills images with zeros, which cost nothing."""
  shapes = (2, 8, 8, 4), (3, 3, 4, 5)
  for strides in ((1, 1), (2, 2)):
    call = functools.partial(convolve, strides=strides)

    def both(x, kernel, call=call):
      y, pullback = jax.vjp(call, x, kernel)
      return pullback(y)

    found = of(both, *shapes) / of(call, *shapes)
    assert found == pytest.approx(3, rel=0.02)


def test_beside_the_count_of_xla():
  def loss(w, x):
    h = jnp.tanh(x @ w)
    return (h @ w.T).mean()

  shapes = jnp.zeros((48, 32)), jnp.zeros((16, 48))
  traced = jax.jit(jax.value_and_grad(loss)).trace(*shapes)
  counted = flops.count(traced.jaxpr)
  compiled = traced.lower().compile().cost_analysis()['flops']
  assert counted == pytest.approx(compiled, rel=0.05)


def test_a_condition_counts_as_the_longest_branch():
  def function(x):
    return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

  assert of(function, (8, 8)) == pytest.approx(2 * 2 * 8**3, abs=2)


def test_every_root_of_a_covariance_has_arithmetic():
  from bn_research import norms

  x = jax.ShapeDtypeStruct((32, 8), jnp.float32)
  for method in ('zca', 'pca', 'cholesky', 'newton_schulz'):
    norm = norms.batch_whitening(method)
    state = norm.init(8)
    jaxpr = jax.make_jaxpr(lambda x, n=norm, s=state: n.apply(x, s))(x)
    assert np.isfinite(flops.count(jaxpr))
    assert flops.count(jaxpr) > 2 * 32 * 8 * 8
