"""Gradients preconditioned by the covariance of inputs, step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_research import norms
from bn_research.norms.inputs import layer_inputs as inputs
from bn_research.preconditioning import input_covariance
from tests.quick import star

D, M, EPSILON, DECAY = 4, 3, 1e-2, 0.8
PRECONDITION = functools.partial(
  input_covariance.precondition_by_input_covariance,
  epsilon=EPSILON,
  decay=DECAY,
)


def steps(count, use_bias=True):
  """Returns inputs and gradients of one dense layer, step by step."""
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(D, D))
  return [
    (
      rng.normal(size=(20, D)) @ mix + t,
      {
        'kernel': rng.normal(size=(D, M)),
        **({'bias': rng.normal(size=M)} if use_bias else {}),
      },
    )
    for t in range(count)
  ]


def oracle(x, gradients, every, structure, relative):
  """All updates, in NumPy; `x` holds the inputs up to each step."""
  result = []
  for t, gradient in enumerate(gradients):
    last = t - t % every + 1
    weights = DECAY ** np.arange(last)[::-1]
    mean = np.average([b.mean(0) for b in x[:last]], 0, weights)
    cov = np.average([np.cov(b.T) for b in x[:last]], 0, weights)
    if 'bias' not in gradient:
      cov, mean = cov + np.outer(mean, mean), np.zeros(D)
    unit = np.trace(cov) / D if relative else 1
    damped = cov + EPSILON * unit * np.eye(D)
    inverse = {
      'full': lambda m: np.linalg.inv(m),
      'diagonal': lambda m: np.diag(1 / np.diag(m)),
      'identity': lambda m: np.eye(D),
    }[structure](damped)
    bias = gradient.get('bias', np.zeros(M))
    kernel = inverse @ (gradient['kernel'] - np.outer(mean, bias))
    new = {'kernel': kernel, 'bias': bias - mean @ kernel}
    result.append({key: new[key] for key in gradient})
  return result


def run(transformation, data, name='layer'):
  """Returns the updates of every step."""
  f32 = functools.partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, 'f'))
  state = transformation.init({name: f32(data[0][1])})
  step = jax.jit(
    lambda gradient, state, x: transformation.update(
      {name: gradient},
      state,
      input_moments={name: inputs.input_moments(x)},
    )
  )
  result = []
  for x, gradient in data:
    updates, state = step(f32(gradient), state, f32(x))
    result.append(updates[name])
  assert step._cache_size() == 1
  return result


@pytest.mark.parametrize(
  ('structure', 'use_bias', 'interval'),
  star(
    ('full', 'diagonal', 'identity'), (True, False), ((1, True), (3, False))
  ),
)
def test_against_numpy(structure, use_bias, interval):
  every, relative = interval
  data = steps(5, use_bias)
  rule = PRECONDITION(every, covariance=structure, relative=relative)
  found = run(rule, data)
  expected = oracle(*zip(*data, strict=True), every, structure, relative)
  for a, b in zip(found, expected, strict=True):
    assert a.keys() == b.keys()
    for key in b:
      assert np.isfinite(a[key]).all()
      np.testing.assert_allclose(a[key], b[key], rtol=2e-4, atol=2e-4)


def test_mean_normalized_descent_is_descent_on_centred_inputs():
  """One step: the outputs of x - c under the gradient of the centred layer."""
  ((x, _),) = steps(1)
  delta = np.random.default_rng(1).normal(size=(20, M))
  gradient = {'kernel': x.T @ delta, 'bias': delta.sum(0)}
  (found,) = run(PRECONDITION(covariance='identity'), [(x, gradient)])
  centred = x - x.mean(0)
  expected = centred @ (centred.T @ delta) + delta.sum(0)
  np.testing.assert_allclose(
    x @ found['kernel'] + found['bias'], expected, rtol=1e-4, atol=1e-3
  )


@pytest.mark.slow
def test_a_convolution_is_a_dense_layer_on_patches():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(4, 5, 5, 2)) + 1, jnp.float32)
  gradient = {
    'kernel': jnp.asarray(rng.normal(size=(3, 3, 2, M)), jnp.float32),
    'bias': jnp.asarray(rng.normal(size=M), jnp.float32),
  }
  transformation = PRECONDITION()
  moments = inputs.input_moments(x, norms.Patches((3, 3)))
  updates, _ = transformation.update(
    gradient, transformation.init(gradient), input_moments={'': moments}
  )
  rows = np.stack(
    [
      np.asarray(x[n, i : i + 3, j : j + 3], np.float64).ravel()
      for n in range(4)
      for i in range(3)
      for j in range(3)
    ]
  )
  mean, cov = rows.mean(0), np.cov(rows.T)
  damped = cov + EPSILON * np.eye(18)
  kernel = np.asarray(gradient['kernel'], np.float64).reshape(18, M)
  kernel = np.linalg.solve(damped, kernel - np.outer(mean, gradient['bias']))
  np.testing.assert_allclose(
    updates['kernel'].reshape(18, M), kernel, rtol=1e-3, atol=1e-3
  )
  np.testing.assert_allclose(
    updates['bias'], gradient['bias'] - mean @ kernel, rtol=1e-3, atol=1e-3
  )


def test_what_has_no_kernel_is_left_alone():
  params = {
    'dense': {'kernel': jnp.ones((D, M))},
    'norm': {'scale': jnp.ones(M), 'bias': jnp.ones(M)},
  }
  transformation = PRECONDITION()
  state = transformation.init(params)
  assert state.layers.keys() == {'dense'}
  x = jnp.asarray(steps(1)[0][0], jnp.float32)
  moments = {'dense': inputs.input_moments(x)}
  updates, _ = transformation.update(params, state, input_moments=moments)
  assert updates['norm'] == params['norm']
  assert not np.allclose(updates['dense']['kernel'], 1, atol=0.1)


def test_it_composes():
  """Momentum before it, Adam after it, and kernels left out of it."""
  params = {
    'a': {'kernel': jnp.ones((D, M))},
    'b': {'kernel': jnp.ones((2, 2))},
  }
  optimizer = optax.chain(
    optax.trace(0.9),
    optax.masked(PRECONDITION(), {'a': True, 'b': False}),
    optax.scale_by_adam(),
  )
  x = jnp.asarray(steps(1)[0][0], jnp.float32)
  moments = {'a': inputs.input_moments(x)}
  state = optimizer.init(params)
  for _ in range(2):
    updates, state = optimizer.update(
      params, state, params, input_moments=moments
    )
  # Adam's direction of a constant gradient.
  np.testing.assert_allclose(updates['b']['kernel'], 1, rtol=0.1)
  assert np.isfinite(updates['a']['kernel']).all()


@pytest.mark.parametrize('structure', ['full', 'diagonal'])
def test_bad_inputs_give_finite_updates(structure):
  constant = (np.ones((20, D)), steps(1)[0][1])
  ((x, gradient),) = steps(1)
  broken = (np.where(np.arange(D) == 1, np.nan, x), gradient)
  found = run(PRECONDITION(covariance=structure), [constant, broken, broken])
  for updates in found:
    assert all(np.isfinite(leaf).all() for leaf in updates.values())


@pytest.mark.parametrize('structure', ['full', 'diagonal', 'identity'])
def test_until_there_are_moments_a_gradient_is_as_it_was(structure):
  ((x, gradient),) = steps(1)
  broken = (np.where(np.arange(D) == 1, np.nan, x), gradient)
  first, second = run(
    PRECONDITION(every=5, covariance=structure), [broken, (x, gradient)]
  )
  (alone,) = run(PRECONDITION(every=5, covariance=structure), [(x, gradient)])
  for key in gradient:
    np.testing.assert_allclose(first[key], gradient[key], rtol=1e-6)
    np.testing.assert_allclose(second[key], alone[key], rtol=1e-6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'every': 0}, 'every=0; choose at least 1 step'),
    ({'decay': 1.0}, r'decay=1\.0; choose a number in \[0, 1\)'),
    ({'epsilon': -1.0}, r'epsilon=-1\.0; choose a finite number of at least 0'),
    ({'covariance': 'block'}, 'choose full, diagonal or identity'),
  ],
)
def test_options_out_of_range(options, message):
  with pytest.raises(ValueError, match=message):
    PRECONDITION(**options)


def test_moments_that_do_not_fit():
  params = {'dense': {'kernel': jnp.ones((D, M))}}
  transformation = PRECONDITION()
  state = transformation.init(params)
  moments = inputs.input_moments(jnp.ones((5, D + 1)))
  for wrong, message in [
    ({}, 'kernel of dense has no input_moments; there are those of nothing'),
    ({'dense': moments}, 'multiplies 4 inputs, and its input_moments are of 5'),
  ]:
    with pytest.raises(ValueError, match=message):
      transformation.update(params, state, input_moments=wrong)


def test_narrow_parameters_under_x64():
  with jax.enable_x64(True):
    kernel = jnp.ones((3, 2), jnp.float32)
    params = {'dense': {'kernel': kernel, 'bias': jnp.zeros(2, jnp.float32)}}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)), jnp.float32)
    moments = {'dense': inputs.input_moments(x)}
    optimizer = input_covariance.precondition_by_input_covariance()
    updates, _ = optimizer.update(
      params, optimizer.init(params), params, input_moments=moments
    )
    assert np.isfinite(updates['dense']['kernel']).all()
    assert updates['dense']['kernel'].dtype == jnp.float32
