"""A dense layer in whitened coordinates, and what layers note of input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import norms
from bn_research.norms.inputs import layer_inputs as inputs
from bn_research.preconditioning import WhitenedDense, record_inputs
from tests.quick import some

D, M = 40, 7


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def batches(count, dtype=np.float32):
  """Batches of a condition number near 1e6 that drift."""
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(D, D)) * np.geomspace(1, 1e-3, D)
  for t in range(count):
    yield jnp.asarray(rng.normal(size=(128, D)) @ mix + 2 + t, dtype)


@nnx.jit
def refresh(layer, x):
  return layer.refresh(inputs.input_moments(x))


def change_at_refreshes(layer, dtype=np.float32):
  """Returns the largest change of an output, relative to the largest output."""
  call = nnx.jit(lambda layer, x: layer(x))
  worst = 0.0
  for x in batches(4, dtype):
    before = call(layer, x)
    assert refresh(layer, x)
    after = call(layer, x)
    assert jnp.isfinite(after).all()
    change = jnp.abs(after - before).max() / jnp.abs(before).max()
    worst = max(worst, float(change))
  return worst


def test_it_begins_as_a_dense_layer():
  x = next(batches(1))
  ours = WhitenedDense(D, M, rngs=nnx.Rngs(3))
  flax = nnx.Linear(D, M, rngs=nnx.Rngs(3))
  np.testing.assert_allclose(ours(x), flax(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
  ('epsilon', 'use_bias', 'most'),
  some(
    [(1e-3, True, 1e-6)],
    [
      (1e-6, False, 1e-4),
      (1e-2, True, 1e-6),
      (1e-6, True, 3e-6),
      (1e-3, False, 1e-5),
    ],
  ),
)
def test_a_refresh_keeps_outputs(epsilon, use_bias, most):
  layer = WhitenedDense(
    D,
    M,
    every=1,
    whiten=norms.Whiten('zca', epsilon=epsilon),
    use_bias=use_bias,
    rngs=nnx.Rngs(0),
  )
  assert change_at_refreshes(layer) <= most


@pytest.mark.slow
@pytest.mark.parametrize(
  'method', some(['zca'], ['newton_schulz', 'cholesky', 'pca'])
)
def test_a_refresh_keeps_outputs_to_double_precision(x64, method):
  layer = WhitenedDense(
    D,
    M,
    every=1,
    whiten=norms.Whiten(method, epsilon=1e-3),
    param_dtype=jnp.float64,
    rngs=nnx.Rngs(0),
  )
  assert change_at_refreshes(layer, np.float64) <= 1e-12


@pytest.mark.parametrize(
  ('method', 'use_bias'),
  some([('zca', True)], [('zca', False), ('cholesky', True), ('pca', True)]),
)
def test_after_a_refresh_its_input_is_white(x64, method, use_bias):
  layer = WhitenedDense(
    D,
    M,
    whiten=norms.Whiten(method, epsilon=1e-13),
    use_bias=use_bias,
    param_dtype=jnp.float64,
    rngs=nnx.Rngs(0),
  )
  x = next(batches(1, np.float64))
  assert refresh(layer, x)
  h = (x - layer.mean[...]) @ layer.basis[...]
  mean = h.mean(0)
  np.testing.assert_allclose(mean * use_bias, 0, atol=1e-9)
  # Without a bias about zero; the mean needs no factor n / (n - 1).
  second = np.cov(h.T) + np.outer(mean, mean)
  np.testing.assert_allclose(second, np.eye(D), atol=1e-5)


def test_it_moves_at_the_interval_and_learns_at_every_step():
  layer = WhitenedDense(
    D, M, every=3, population=norms.Ema(0.5), rngs=nnx.Rngs(0)
  )
  moved, means = [], []
  for x in batches(7):
    moved.append(bool(refresh(layer, x)))
    means.append(float(layer.average.mean[...].mean()))
  assert moved == [True, False, False, True, False, False, True]
  assert (np.diff(means) > 0.4).all()


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_moments_that_are_not_finite_change_nothing(value):
  layer = WhitenedDense(D, M, every=1, rngs=nnx.Rngs(0))
  x = next(batches(1))
  before = layer(x)
  assert not refresh(layer, x.at[0, 0].set(value))
  np.testing.assert_array_equal(layer(x), before)
  assert layer.average.skipped[...] == 1


def test_what_does_not_vary_moves_nothing():
  layer = WhitenedDense(D, M, every=1, rngs=nnx.Rngs(0))
  x = jnp.zeros((8, D))
  assert not refresh(layer, x)
  assert refresh(layer, next(batches(1)))
  assert jnp.isfinite(layer(x)).all()


@pytest.mark.slow
def test_momentum_of_a_narrower_type_is_carried_in_it():
  layer, wide = (WhitenedDense(D, M, rngs=nnx.Rngs(0)) for _ in range(2))
  narrow = nnx.clone(wide)
  for param in (narrow.kernel, narrow.bias):
    param.set_value(param[...].astype(jnp.bfloat16))
  moments = inputs.input_moments(next(batches(1)))
  assert layer.refresh(moments, (wide, narrow))
  assert narrow.kernel[...].dtype == narrow.bias[...].dtype == jnp.bfloat16
  # Single entries cancel; bfloat16 has eight bits.
  apart = np.asarray(narrow.kernel[...] - wide.kernel[...])
  assert np.linalg.norm(apart) <= 0.01 * np.linalg.norm(wide.kernel[...])


def test_an_interval_must_be_positive():
  with pytest.raises(ValueError, match='every=0 must be at least 1 step'):
    WhitenedDense(D, M, every=0, rngs=nnx.Rngs(0))


class Several(nnx.Module):
  """Layers of all kinds, one of them called twice."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.conv = nnx.Conv(2, 3, (3, 3), strides=2, rngs=rngs)
    self.dense = nnx.List([nnx.Linear(3, 3, rngs=rngs)])
    self.whitened = WhitenedDense(3, 3, rngs=rngs)

  def __call__(self, x):
    h = self.conv(x)
    for _ in range(2):
      h = jnp.tanh(self.dense[0](h))
    return self.whitened(h)


def test_every_layer_notes_its_input():
  model = Several()
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 2)), 'float32')
  h = model.conv(x)
  g = jnp.tanh(model.dense[0](h))
  last = jnp.tanh(model.dense[0](g))
  expected = model(x)
  found = record_inputs(model)
  assert found == {}
  np.testing.assert_array_equal(model(x), expected)
  wanted = {
    'conv': inputs.input_moments(x, norms.Patches((3, 3), 2, 'SAME')),
    'dense/0': inputs.input_moments(jnp.concatenate([h, g])),
    'whitened': inputs.input_moments(last),
  }
  assert found.keys() == wanted.keys()
  for name, moments in wanted.items():
    for a, b in zip(found[name], moments, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_moments_that_nobody_uses_cost_nothing():
  x = jnp.zeros((4, 6, 6, 2))
  graphdef, state = nnx.split(Several())

  def run(state, x, listen):
    model = nnx.merge(graphdef, state, copy=True)
    if listen:
      record_inputs(model)
    return model(x)

  def num_flops(listen):
    lowered = jax.jit(functools.partial(run, listen=listen)).lower(state, x)
    return lowered.compile().cost_analysis()['flops']

  assert num_flops(True) == num_flops(False)
