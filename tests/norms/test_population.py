"""What is remembered, at every step: averages, pools, micro-batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms
from tests.oracles import populations, sets

FEATURES = 3


def with_population(population):
  return norms.Normalization(norms.Batch(), norms.Standardize(), population)


def batches(steps=10):
  """Batches of different sizes, means and deviations; x and mask."""
  rng = np.random.default_rng(0)
  for step in range(steps):
    x = rng.normal(rng.normal(0, 5), rng.uniform(0.1, 3), (32, FEATURES))
    yield x, np.arange(32)[:, None] < 5 + 3 * step


def one_batch(dtype='float32'):
  return jnp.asarray(next(batches())[0], dtype)


def check_every_step(population, remember, start=None):
  norm, history = with_population(population), []
  state = norm.init(FEATURES, jnp.zeros(()).dtype) if start is None else start
  for x, mask in batches():
    _, state = norm.apply(jnp.asarray(x), state, mask=mask)
    history.append((x, mask))
    mean, var = remember(history)
    assert np.isfinite(state.mean).all()
    np.testing.assert_allclose(state.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(state.var, var, rtol=1e-12)
    assert (state.steps, state.skipped) == (len(history), 0)


MOMENTS = {True: populations.unbiased, False: populations.biased}


@pytest.mark.parametrize('unbiased', [True, False])
@pytest.mark.parametrize('momentum', [0.0, 0.5, 0.99, 1 - 1e-9])
def test_a_debiased_average_has_weights_that_sum_to_one(
  momentum, unbiased, x64
):
  """np.average(weights=momentum ** age), whatever the state began with."""
  population = norms.Ema(momentum, unbiased=unbiased)
  remember = populations.decaying(momentum, MOMENTS[unbiased])
  start = with_population(population).init(FEATURES, jnp.zeros(()).dtype)
  odd = start._replace(mean=start.mean + 1e6, var=start.var * 1e9)
  check_every_step(population, remember, odd)


@pytest.mark.parametrize('momentum', [0.0, 0.9, 1.0])
def test_an_average_that_is_not_debiased_keeps_the_initial_value(momentum, x64):

  def remember(history):
    mean, var = np.zeros(FEATURES), np.ones(FEATURES)
    for batch in history:
      new_mean, new_var = populations.unbiased(*batch)
      mean = momentum * mean + (1 - momentum) * new_mean
      var = momentum * var + (1 - momentum) * new_var
    return mean, var

  check_every_step(norms.Ema(momentum, debias=False), remember)


@pytest.mark.parametrize('unbiased', [True, False])
def test_a_cumulative_average_weighs_batches_alike(unbiased, x64):
  remember = populations.equal(MOMENTS[unbiased])
  check_every_step(norms.Cumulative(unbiased), remember)


def test_pooled_is_one_big_batch(x64):
  joined = lambda arrays: np.concatenate(list(arrays))
  remember = lambda history: populations.biased(
    *map(joined, zip(*history, strict=True))
  )
  check_every_step(norms.Pooled(), remember)


@pytest.mark.parametrize(
  'population', [norms.Ema(0.7), norms.Cumulative()], ids=['ema', 'cumulative']
)
def test_micro_batches_are_one_update_of_the_big_batch(population, x64):
  """Three at a time, of different sizes; one of them is empty."""
  micro = with_population(norms.Accumulated(3, population))
  big = with_population(population)
  state, right, waiting = (
    micro.init(FEATURES, jnp.zeros(()).dtype),
    big.init(FEATURES, jnp.zeros(()).dtype),
    [],
  )
  for k, (x, mask) in enumerate(batches(9)):
    waiting.append((x, mask & (k != 4)))
    _, state = micro.apply(jnp.asarray(x), state, mask=waiting[-1][1])
    if len(waiting) == 3:
      x, mask = (np.concatenate(part) for part in zip(*waiting, strict=True))
      _, right = big.apply(jnp.asarray(x), right, mask=mask)
      waiting = []
    np.testing.assert_allclose(state.mean, right.mean, rtol=1e-12)
    np.testing.assert_allclose(state.var, right.var, rtol=1e-12)
    assert (state.steps, state.skipped) == (right.steps, 0)
  assert right.steps == 3


BAD = {
  'nan': lambda x: x.at[1, 0].set(jnp.nan),
  'inf': lambda x: x.at[1, 0].set(jnp.inf),
  'overflow': lambda x: x.at[1, 0].set(3e38),
}
POPULATIONS = {
  'ema': norms.Ema(0.9),
  'cumulative': norms.Cumulative(),
  'pooled': norms.Pooled(),
}


@pytest.mark.parametrize('bad', BAD)
@pytest.mark.parametrize('name', POPULATIONS)
def test_what_is_not_finite_is_counted_and_not_learned(name, bad):
  norm = with_population(POPULATIONS[name])
  good = one_batch()
  _, state = norm.apply(good, norm.init(FEATURES, jnp.zeros(()).dtype))
  _, after = norm.apply(BAD[bad](good), state)
  assert after.skipped == 1
  kept = after._replace(skipped=state.skipped)
  jax.tree.map(np.testing.assert_array_equal, kept, state)
  _, last = norm.apply(good + 1, after)
  _, right = norm.apply(good + 1, state)
  jax.tree.map(
    np.testing.assert_array_equal, last._replace(skipped=right.skipped), right
  )


@pytest.mark.parametrize(
  'population', [norms.Ema(), norms.Cumulative(), norms.Pooled()]
)
def test_a_batch_without_activations_is_skipped(population):
  """Also where it is one feature alone that a mask hides."""
  norm = norms.Normalization(norms.Batch(), norms.Standardize(), population)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), 'float32')
  _, before = norm.apply(x, norm.init(3))
  for mask in (jnp.zeros((8, 1)), jnp.ones((8, 3)).at[:, 1].set(0)):
    _, after = norm.apply(x + 1, before, mask=mask)
    assert (after.steps, after.skipped) == (1, 1)
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(after.var, before.var)


def test_one_activation_has_no_unbiased_variance():
  """n / (n - 1) of it is unknown: not zero, which would blow up inference."""
  norm = with_population(norms.Ema(0.9))
  _, state = norm.apply(one_batch(), norm.init(FEATURES, jnp.zeros(()).dtype))
  _, after = norm.apply(jnp.ones((1, 3)), state)
  np.testing.assert_array_equal(after.var, state.var)
  assert after.skipped == 1


def test_no_gradient_flows_through_the_state(x64):
  norm = with_population(norms.Ema(0.9))
  x = one_batch('float64')
  state = norm.init(FEATURES, jnp.zeros(()).dtype)

  def loss(x):
    _, after = norm.apply(x, state)
    return jnp.sum(after.mean) + jnp.sum(after.var)

  np.testing.assert_array_equal(jax.grad(loss)(x), jnp.zeros_like(x))


def test_the_state_can_be_donated():
  norm = with_population(norms.Ema(0.9))
  step = jax.jit(lambda state, x: norm.apply(x, state)[1], donate_argnums=0)
  x = one_batch()
  state = step(step(norm.init(FEATURES, jnp.zeros(()).dtype), x), x)
  assert state.steps == 2


def test_frozen_normalizes_with_the_population_and_moves_nothing(x64):
  norm = with_population(norms.Ema(0.9))
  x = one_batch('float64')
  _, state = norm.apply(2 * x + 1, norm.init(FEATURES, jnp.zeros(()).dtype))
  frozen = partial(norm.apply, use_running=True, update=False)
  y, after = frozen(x, state)
  jax.tree.map(np.testing.assert_array_equal, after, state)
  past = sets.running(np.asarray(x), True, 1e-5, state)
  np.testing.assert_allclose(y, past, rtol=1e-12)
  # The gradient is that of a constant affine map, batch or not.
  grad = jax.grad(lambda x: jnp.sum(frozen(x, state)[0]))(x)
  np.testing.assert_allclose(
    grad, np.broadcast_to((state.var + 1e-5) ** -0.5, x.shape), rtol=1e-12
  )


@pytest.mark.parametrize('momentum', [-0.1, 1.0, 1.5])
def test_a_momentum_out_of_range_says_what_it_is(momentum):
  with pytest.raises(ValueError, match='weight of the old value'):
    norms.Ema(momentum)


def test_ramp_is_the_schedule_of_batch_renormalization():
  """Ioffe (2017), 4.1: r_max 1 until step 5000, then to 3 at step 40000."""
  ramp = norms.Ramp(1.0, 3.0, 5000, 40000)
  steps = jnp.asarray([0, 5000, 22500, 40000, 90000])
  np.testing.assert_allclose(ramp(steps), [1, 1, 2, 3, 3], rtol=1e-6)
  norm = norms.batch_renorm()
  x = one_batch()
  first, _ = norm.apply(x, norm.init(FEATURES, jnp.zeros(()).dtype))
  plain, _ = norms.batch_norm().apply(
    x, norms.batch_norm().init(FEATURES, jnp.zeros(()).dtype)
  )
  np.testing.assert_allclose(first, plain, atol=1e-5)
  assert norm.gradient.r_max == ramp
  assert norm.gradient.d_max == norms.Ramp(0.0, 5.0, 5000, 25000)
