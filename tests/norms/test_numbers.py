"""Momentum, epsilon and their like: numbers, arrays, traced, schedules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms
from tests.own_statistics import Median
from tests.quick import some

X = jnp.asarray(np.random.default_rng(0).standard_normal((12, 4)) * 3 + 1)
X = X.astype(jnp.float32)


def after(norm, batches):
  state = norm.init(4)
  for x in batches:
    _, state = norm.apply(x, state)
  return state


MAKERS = {
  'batch_norm': lambda momentum, epsilon: norms.batch_norm(momentum, epsilon),
  'batch_renorm': lambda m, e: norms.batch_renorm(m, e, r_max=2.0),
  'batch_whitening': lambda m, e: norms.batch_whitening(
    'zca', epsilon=e, momentum=m
  ),
  'interval': lambda m, e: norms.batch_whitening(
    'zca', epsilon=e, momentum=m, every=2
  ),
  'chain': lambda m, e: norms.batch_whitening(
    'cholesky', epsilon=e, momentum=m, refinements=1
  ),
  'evonorm_b0': lambda m, e: norms.EvoNormB0(m, e),
}


@pytest.mark.parametrize('name', some(['batch_renorm', 'interval'], MAKERS))
def test_arrays_and_traced_numbers_are_as_python_numbers(name):
  make = MAKERS[name]
  plain = make(0.75, 1e-2)
  x = X.reshape(4, 3, 4) if name == 'evonorm_b0' else X
  learned = plain.learned(4)

  @jax.jit
  def traced(momentum, epsilon, x):
    norm = make(momentum, epsilon)
    return norm.apply(x, norm.init(4), learned=learned)

  expected = plain.apply(x, plain.init(4), learned=learned)
  arrays = make(jnp.float32(0.75), np.asarray(1e-2, np.float32))
  found = arrays.apply(x, arrays.init(4), learned=learned)
  for result in (traced(0.75, 1e-2, x), found):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5),
      result,
      expected,
    )


def test_a_normalization_is_a_pytree_whose_arrays_are_leaves():
  assert jax.tree.leaves(norms.batch_norm()) == []
  momentum, epsilon = jnp.float32(0.5), jnp.float32(1e-2)
  norm = norms.Chain(
    (norms.batch_norm(momentum, epsilon), norms.layer_norm(epsilon))
  )
  assert len(jax.tree.leaves(norm)) == 3
  doubled = jax.tree.map(lambda leaf: 2 * leaf, norm)
  assert doubled.parts[0].map.epsilon == 2e-2
  assert doubled.parts[0].scope == norm.parts[0].scope
  median = Median(epsilon=epsilon)
  assert jax.tree.leaves(median) == [epsilon]
  assert type(jax.tree.map(jnp.copy, median)) is Median


def test_without_arrays_it_compares_hashes_and_is_static():
  a, b = norms.batch_norm(0.5), norms.batch_norm(0.5)
  assert a == b
  assert hash(a) == hash(b)
  assert a != norms.batch_norm(0.6)
  apply = lambda norm, x: norm.apply(x, norm.init(4))[0]
  run = jax.jit(apply, static_argnums=0)
  run(a, X)
  run(b, X)
  assert run._cache_size() == 1
  np.testing.assert_allclose(jax.jit(apply)(a, X), run(a, X), atol=1e-6)


def test_an_array_does_not_compile_anew():
  run = jax.jit(lambda norm, x: norm.apply(x, norm.init(4))[1].var)
  for momentum in (0.1, 0.5, 0.9):
    norm = norms.Normalization(
      norms.Batch(), norms.Standardize(), norms.Ema(jnp.float32(momentum))
    )
    run(norm, X)
  assert run._cache_size() == 1


def test_epsilon_has_a_derivative():
  loss = lambda epsilon: norms.layer_norm(epsilon).apply(X)[0][0, 0]
  found = jax.grad(loss)(jnp.float32(0.5))
  x = np.asarray(X[0], np.float64)
  expected = -0.5 * (x[0] - x.mean()) * (x.var() + 0.5) ** -1.5
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def weighed(values, momenta):
  """Σ of the values, each by its share and by all later momenta; float64."""
  total = weight = 0.0
  for value, momentum in zip(values, momenta, strict=True):
    total = momentum * total + (1 - momentum) * value
    weight = momentum * weight + (1 - momentum)
  return total / weight


@pytest.mark.parametrize('population', ['ema', 'accumulated', 'interval'])
def test_a_momentum_that_changes_is_debiased_exactly(population):
  momentum = lambda steps: 0.5 + 0.1 * steps
  ema = norms.Ema(momentum)
  chosen = {
    'ema': ema,
    'accumulated': norms.Accumulated(1, ema),
    'interval': norms.Interval(1, ema),
  }
  norm = norms.Normalization(
    norms.Batch(), norms.Standardize(), chosen[population]
  )
  batches = [X + k for k in range(4)]
  state = after(norm, batches)
  means = [np.asarray(x, np.float64).mean(0) for x in batches]
  expected = weighed(means, [0.5, 0.6, 0.7, 0.8])
  np.testing.assert_allclose(state.mean, expected, rtol=1e-5)


def test_an_epsilon_may_be_a_schedule_of_the_count():
  epsilon = lambda steps: jnp.where(steps < 1, 4.0, 1e-5)
  norm = norms.Normalization(
    norms.Batch(), norms.Standardize(epsilon=epsilon), norms.Ema()
  )
  state = norm.init(4)
  for value in (4.0, 1e-5):
    y, state = norm.apply(X, state)
    expected, _ = norms.batch_norm(epsilon=value).apply(
      X, norms.batch_norm().init(4)
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.slow
def test_an_epsilon_may_be_a_schedule_at_an_interval():
  epsilon = lambda steps: jnp.where(steps < 1, 4.0, 1e-5)
  for map_ in (
    norms.Whiten('zca', epsilon=epsilon),
    norms.Whiten('zca', epsilon=epsilon, average='matrix'),
    norms.Divide(offset=epsilon),
  ):
    interval = norms.Interval(1, norms.Ema(0.5))
    norm = norms.Normalization(norms.Batch(), map_, interval)
    state = after(norm, [X, X])
    assert np.isfinite(state.pair.spread).all()
    adopted = interval.adopt(
      state,
      norms.Moments(*(leaf[0] for leaf in norm.measure(X))),
      map_,
      state.steps,
    )
    assert np.isfinite(adopted.pair.spread).all()


def test_numbers_of_numpy_are_numbers():
  x = X[:3]
  norm = norms.batch_norm(np.float32(0.5), np.float64(1e-3))
  found, expected = (
    n.apply(x, n.init(4)) for n in (norm, norms.batch_norm(0.5, 1e-3))
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected
  )


REFUSED = {
  'has a schedule.*without a population': lambda: norms.layer_norm(
    lambda steps: 1e-5
  ),
  r'momentum is an array of shape \(4,\)': lambda: norms.batch_norm(
    jnp.full(4, 0.9)
  ),
  r"epsilon='small' must be finite": lambda: norms.layer_norm('small'),
  'every=0.5 must be at least 1': lambda: norms.Interval(0.5, norms.Ema()),
  'needs an average inside, and got Pooled': lambda: norms.Accumulated(
    2, norms.Pooled()
  ),
  'takes neither three arguments nor two': lambda: norms.batch_norm(
    gradient=lambda batch: batch
  ),
  'scope=3 is not a scope': lambda: norms.Normalization(3, norms.Standardize()),
  'map=.* is not a map': lambda: norms.Normalization(
    norms.Batch(), norms.Batch()
  ),
  'population=0.9 is not a population': lambda: norms.Normalization(
    norms.Batch(), norms.Standardize(), 0.9
  ),
  'has no parts': lambda: norms.Chain(()),
}


@pytest.mark.parametrize('message', REFUSED)
def test_what_is_no_number_or_no_choice_is_refused(message):
  with pytest.raises(ValueError, match=message) as caught:
    REFUSED[message]()
  assert '\n' not in str(caught.value)


def test_replace_keeps_arrays():
  norm = norms.batch_norm(jnp.float32(0.5))
  changed = dataclasses.replace(norm, gradient=norms.stopped)
  assert changed.population.momentum is norm.population.momentum
