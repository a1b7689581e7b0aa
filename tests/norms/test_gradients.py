"""The gradient axis: what of the statistics reaches the optimizer.

Each policy is autodiff of the plain formula with `stop_gradient` where the
policy has one: in both modes, to third order.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms
from tests.oracles import formulas, sets
from tests.quick import some
from tests.rows import EPSILON

SHAPE = (6, 2, 4)
SCOPES = {
  'batch_norm': (norms.batch_norm, sets.batch),
  'ghosts': (
    partial(norms.batch_norm, group_size=4),
    partial(sets.batch, group_size=4),
  ),
  'layer_norm': (norms.layer_norm, sets.features),
  'instance_norm': (norms.instance_norm, sets.instance),
  'group_norm': (
    partial(norms.group_norm, 2),
    partial(sets.group, num_groups=2),
  ),
  'rms_norm': (norms.rms_norm, sets.features),
}


def problem(scope, policy):
  """Losses of the library and of the formula, and where to take them."""
  factory, labelled = SCOPES[scope]
  norm = factory(epsilon=EPSILON, gradient=policy)
  formula = formulas.standardized(labelled, scope != 'rms_norm', policy)
  rng = np.random.default_rng(0)
  x, weights, direction = jnp.asarray(rng.normal(size=(3, *SHAPE)))
  mask = rng.uniform(size=SHAPE) < 0.8
  state = norm.init(SHAPE[-1])
  ours = lambda x: norm.apply(x, state, mask=mask)[0]
  plain = lambda x: formula(x, mask, EPSILON, None)
  loss = lambda f: lambda x: jnp.sum(weights * jnp.sin(f(x)))
  return loss(ours), loss(plain), x, direction


def close(actual, expected):
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert np.isfinite(a).all()
    size = 1 + np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize(
  ('scope', 'policy'),
  some(
    [
      *(('batch_norm', policy) for policy in formulas.POLICIES),
      ('group_norm', 'through'),
    ],
    itertools.product(SCOPES, formulas.POLICIES),
  ),
)
def test_policy_is_autodiff_of_the_formula(scope, policy, x64):
  ours, plain, x, v = problem(scope, policy)

  def derivatives(f):
    slope = lambda x: jax.jvp(f, (x,), (v,))[1]
    grad = jax.grad(f)
    forward = lambda x: jax.jvp(grad, (x,), (v,))[1]
    reverse = jax.grad(lambda x: jnp.vdot(grad(x), v))
    return jax.jit(lambda x: (f(x), slope(x), grad(x), forward(x), reverse(x)))

  close(derivatives(ours)(x), derivatives(plain)(x))


@pytest.mark.slow
@pytest.mark.parametrize('policy', some(['through'], formulas.POLICIES))
def test_third_order(policy, x64):
  ours, plain, x, v = problem('batch_norm', policy)

  def derivatives(f):
    forward = lambda f: lambda x: jax.jvp(f, (x,), (v,))[1]
    reverse = lambda f: lambda x: jnp.vdot(jax.grad(f)(x), v)
    orders = (
      forward(forward(forward(f))),
      jax.grad(forward(forward(f))),
      forward(forward(jax.grad(f))),
      jax.grad(reverse(reverse(f))),
    )
    return jax.jit(lambda x: [order(x) for order in orders])

  close(derivatives(ours)(x), derivatives(plain)(x))


def test_the_third_order_is_that_of_the_value(x64):
  ours, _, x, v = problem('batch_norm', 'through')
  along = lambda f: lambda t: jax.jvp(f, (t,), (1.0,))[1]
  line = lambda t: ours(x + t * v)
  second = jax.jit(along(along(line)))
  third = jax.jit(along(along(along(line))))
  t = 3e-4
  near, far = second(t) - second(-t), second(2 * t) - second(-2 * t)
  np.testing.assert_allclose(third(0.0), (8 * near - far) / (12 * t), rtol=1e-9)


def halfway(batch, population):
  return batch._replace(
    mean=(batch.mean + population.mean) / 2,
    spread=(batch.spread + population.spread) / 2,
  )


def halfway_with_map(batch, population, map_):
  deviation = map_.deviation(batch) ** 2 + map_.deviation(population) ** 2
  mean = (batch.mean + population.mean) / 2
  return map_.divided_by(mean, jnp.sqrt(deviation / 2))


@pytest.mark.parametrize('halfway', [halfway, halfway_with_map])
def test_a_function_of_both_pairs_is_a_policy(halfway):
  norm = norms.batch_norm(epsilon=0.0, gradient=halfway)
  x = jnp.asarray([[1.0], [3.0]])
  y, _ = norm.apply(x, norm.init(1))
  # mean (2 + 0) / 2, variance (1 + 1) / 2
  np.testing.assert_allclose(y, x - 1, rtol=1e-6)


def renormalized(x, mean, std, r_max, d_max):
  """Ioffe (2017), Algorithm 1, with constants r and d."""
  sigma = jnp.sqrt(x.var(0) + EPSILON)
  r = jax.lax.stop_gradient(jnp.clip(sigma / std, 1 / r_max, r_max))
  d = jax.lax.stop_gradient(jnp.clip((x.mean(0) - mean) / std, -d_max, d_max))
  return (x - x.mean(0)) / sigma * r + d


@pytest.mark.parametrize('bounds', [(np.inf, np.inf), (1.2, 0.1)])
def test_renormalization_is_the_formula_with_constants(bounds, x64):
  rng = np.random.default_rng(0)
  x, weights = jnp.asarray(rng.normal(size=(2, 16, 4)) * 2 + 1)
  norm = norms.Normalization(
    norms.Batch(),
    norms.Standardize(epsilon=EPSILON),
    norms.Ema(),
    norms.Renormalized(*bounds),
  )
  state = norm.init(4, jnp.float64)._replace(
    mean=jnp.asarray([0.5, 1.0, 2.0, -1.0]), var=jnp.asarray([0.3, 4.0, 9.0, 2])
  )
  loss = lambda f: lambda x: jnp.sum(weights * jnp.sin(f(x)))
  ours = lambda x: norm.apply(x, state)[0]
  std = jnp.sqrt(state.var + EPSILON)
  plain = lambda x: renormalized(x, state.mean, std, *bounds)
  for of in (lambda f: f(x), lambda f: jax.jit(jax.grad(loss(f)))(x)):
    np.testing.assert_allclose(of(ours), of(plain), rtol=0, atol=1e-11)


def test_section_2_the_bias_grows_where_the_mean_is_stopped():
  """Ioffe and Szegedy (2015), Section 2: b grows and the loss stays."""
  u = jnp.linspace(-1, 1, 64)[:, None]

  def train(policy):
    norm = norms.batch_norm(gradient=policy)
    loss = lambda b: jnp.mean((norm.apply(u + b, norm.init(1))[0] - 1) ** 2)
    first, b = loss(jnp.zeros(())), jnp.zeros(())
    step = jax.jit(lambda b: b - 0.1 * jax.grad(loss)(b))
    for _ in range(100):
      b = step(b)
    return b, first, loss(b)

  b, first, last = train('through')
  np.testing.assert_allclose(b, 0, atol=1e-4)
  b, first, last = train('stopped')
  assert b > 10
  np.testing.assert_allclose(last, first, rtol=1e-5)


@pytest.mark.parametrize(
  ('ranks', 'rows'),
  some([((2, 1), 3)], itertools.product(((1, 2), (2, 1), (2, 2)), (1, 3))),
)
def test_moments_and_affine_need_not_be_of_one_rank(rows, ranks, x64):
  """With one row, moments of features are as large as the activations."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(rows, 4)))
  shapes = [(1,) * (rank - 1) + (4,) for rank in ranks for _ in range(2)]
  arrays = [jnp.asarray(rng.uniform(1, 2, shape)) for shape in shapes]

  def plain(x, mean, var, scale, bias):
    return (x - mean) / jnp.sqrt(var + 0.1) * scale + bias

  def ours(x, *arrays):
    return norms.normalize(x, None, *arrays, epsilon=0.1)

  for f in (jax.jacrev, jax.jacfwd):
    jax.tree.map(
      partial(np.testing.assert_allclose, atol=1e-12),
      jax.jit(f(ours, tuple(range(5))))(x, *arrays),
      jax.jit(f(plain, tuple(range(5))))(x, *arrays),
    )


def test_recalled_is_the_batch_before_the_first_and_the_population_after():
  norm = norms.batch_norm(gradient='recalled')
  first, second = jax.random.normal(jax.random.key(0), (2, 8, 3)) + 3
  y, state = norm.apply(first, norm.init(3))
  np.testing.assert_array_equal(
    y, norms.batch_norm().apply(first, norm.init(3))[0]
  )
  y, _ = norm.apply(second, state)
  known, _ = norm.apply(second, state, use_running=True)
  np.testing.assert_array_equal(y, known)
