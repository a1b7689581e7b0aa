"""States of linen layers: carried between populations, and restored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bn_research import norms
from bn_research.layers import linen as layers
from bn_research.layers.linen import surgery
from tests.quick import some

X = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32) + 3

POPULATIONS = {
  'ema': norms.Ema(0.5),
  'plain': norms.Ema(0.5, debias=False),
  'cumulative': norms.Cumulative(),
  'accumulated': norms.Accumulated(1, norms.Ema(0.5)),
  'interval': norms.Interval(2, norms.Cumulative()),
  'pooled': norms.Pooled(),
}


def trained(name, steps=3):
  """A layer, its normalization and its variables after updates."""
  norm = norms.Normalization(
    norms.Batch(), norms.Standardize(), POPULATIONS[name]
  )
  layer = layers.Norm(norm, use_running_average=False)
  variables = layer.init(jax.random.key(0), X)
  for k in range(steps):
    _, moved = layer.apply(variables, X + k, mutable=['batch_stats'])
    variables = {**variables, **moved}
  return layer, norm, variables


def infer(layer, variables):
  layer = layer.clone(use_running_average=True)
  return layer.apply(variables, X)


@pytest.mark.parametrize('new', POPULATIONS)
@pytest.mark.parametrize('old', POPULATIONS)
def test_an_average_goes_on_in_another_population(old, new):
  """Inference stays, and the next batch has the rate of the new population."""
  before, _, variables = trained(old)
  after, norm, _ = trained(new, 0)
  fresh = after.init(jax.random.key(0), X)
  carried = surgery.carry(variables, fresh, {(): norm})
  if new == 'pooled' and old != 'pooled':
    jax.tree.map(np.testing.assert_array_equal, carried, fresh)
    return
  np.testing.assert_allclose(
    infer(after, carried), infer(before, variables), atol=1e-5
  )
  _, moved = after.apply(carried, X + 9, mutable=['batch_stats'])
  start = carried['batch_stats']['mean']
  change = moved['batch_stats']['mean'] - start
  rate = float((change / ((X + 9).mean(0) - start))[0])
  weight = 1 - 0.5**3 if old in ('ema', 'accumulated') else 1.0
  debiased = 0.5 / (0.5 * weight + 0.5)
  rates = {'plain': 0.5, 'ema': debiased, 'accumulated': debiased}
  np.testing.assert_allclose(rate, rates.get(new, 1 / 4), rtol=1e-3)


def test_an_interval_needs_its_normalization_to_go_on():
  _, _, variables = trained('ema')
  after, norm, _ = trained('interval', 0)
  fresh = after.init(jax.random.key(0), X)
  jax.tree.map(
    np.testing.assert_array_equal, surgery.carry(variables, fresh), fresh
  )
  pair = surgery.carry(variables, fresh, {(): norm})['batch_stats']['pair']
  np.testing.assert_array_equal(pair.mean, variables['batch_stats']['mean'])


def as_dicts(state):
  """What a checkpoint holds that was restored without a target."""
  if hasattr(state, '_asdict'):
    return {k: as_dicts(v) for k, v in state._asdict().items()}
  if isinstance(state, dict):
    return {k: as_dicts(v) for k, v in state.items()}
  return state


RESTORED = {
  **dict.fromkeys(('ema', 'accumulated', 'interval')),
  'fixed': norms.freeze(norms.batch_whitening('zca', every=2)),
  'chain': norms.Chain(
    (norms.batch_whitening('zca', every=2), norms.batch_norm())
  ),
}


@pytest.mark.parametrize('name', RESTORED)
def test_a_restored_layer_goes_on(name):
  norm = RESTORED[name] or trained(name, 0)[1]
  layer = layers.Norm(norm, use_running_average=False)
  variables = layer.init(jax.random.key(0), X)
  expected, moved = layer.apply(variables, X, mutable=['batch_stats'])
  for _ in range(2):
    restored = as_dicts({**variables, **moved})
    np.testing.assert_allclose(
      infer(layer, restored), infer(layer, {**variables, **moved})
    )
    expected, moved = layer.apply(
      {**variables, **moved}, X, mutable=['batch_stats']
    )
    found, after = layer.apply(restored, X, mutable=['batch_stats'])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert jax.tree.structure(after) == jax.tree.structure(moved)


def test_a_restored_interval_is_carried_and_folded():
  class Net(nn.Module):
    normalization: norms.Normalization

    @nn.compact
    def __call__(self, x, train):
      x = nn.Dense(4, name='dense')(x)
      norm = layers.Norm(self.normalization, use_bias=False, name='norm')
      return norm(x, use_running_average=not train)

  norm = norms.batch_whitening('zca', every=2, epsilon=1e-2)
  model = Net(norm)
  variables = model.init(jax.random.key(0), X, True)
  _, moved = model.apply(variables, X, True, mutable=['batch_stats'])
  variables = {**variables, **moved}
  expected = model.apply(variables, X, False)
  restored = as_dicts(variables)
  carried = surgery.carry(restored, variables)
  np.testing.assert_array_equal(model.apply(carried, X, False), expected)
  assert jax.tree.structure(carried) == jax.tree.structure(variables)
  folded = surgery.fold(restored, {('norm',): ('dense',)}, norm)
  plain = Net(norms.none())
  y = plain.apply({'params': {'dense': folded['params']['dense']}}, X, False)
  np.testing.assert_allclose(y, expected, atol=1e-4)


def test_a_layer_of_flax_goes_on_with_the_weight_of_a_trained_model():
  mean = jnp.arange(4.0)
  statistics = {'mean': mean, 'var': mean + 1}
  for name in ('ema', 'cumulative', 'interval'):
    layer, norm, _ = trained(name, 0)
    fresh = layer.init(jax.random.key(0), X)
    carried = surgery.carry({'batch_stats': statistics}, fresh, {(): norm})
    assert carried['batch_stats']['weight'] == 1
    np.testing.assert_array_equal(carried['batch_stats']['mean'], mean)
    expected = (X - mean) / np.sqrt(mean + 1 + 1e-5)
    np.testing.assert_allclose(infer(layer, carried), expected, atol=1e-5)


def test_empty_dicts_stay():
  layer = layers.Norm(norms.Coloured(norms.batch_norm()))
  variables = layer.init(jax.random.key(0), X, False)
  carried = surgery.carry(variables, variables)
  assert jax.tree.structure(carried) == jax.tree.structure(variables)
  layer.apply(carried, X, True)


@pytest.mark.parametrize('restored', [False, True])
def test_the_parts_of_a_combination_go_on(restored):
  make = lambda population: layers.Norm(
    norms.Chain(
      (
        norms.Normalization(norms.Batch(), norms.Standardize(), population),
        norms.layer_norm(),
      )
    ),
    use_running_average=False,
  )
  old, new = make(norms.Ema(0.5)), make(norms.Accumulated(2, norms.Ema(0.5)))
  variables = old.init(jax.random.key(0), X)
  variables |= old.apply(variables, X, mutable=['batch_stats'])[1]
  given = as_dicts_and_lists(variables) if restored else variables
  for layer in (old, new):
    carried = surgery.carry(given, layer.init(jax.random.key(0), X))
    part = carried['batch_stats']['state'][0]
    np.testing.assert_allclose(part.mean, X.mean(0), rtol=1e-6)
    assert part.steps == 1
    np.testing.assert_allclose(
      infer(layer, carried), infer(old, variables), atol=1e-6
    )


def as_dicts_and_lists(tree):
  """What a checkpoint may hold in place of tuples with and without names."""
  if hasattr(tree, '_asdict'):
    tree = tree._asdict()
  if isinstance(tree, dict):
    return {k: as_dicts_and_lists(v) for k, v in tree.items()}
  return [*map(as_dicts_and_lists, tree)] if isinstance(tree, tuple) else tree


@pytest.mark.slow
@pytest.mark.parametrize('stacked', some([True], [False]))
def test_blocks_and_stacked_models_go_on_at_an_interval(stacked):
  """Schedules of stacked models have a count for each model."""
  map_ = norms.Whiten('zca', 2, epsilon=lambda steps: 0.1 / (1 + steps))
  ema = norms.Ema(0.5)

  def make(population):
    norm = norms.Normalization(norms.Batch(), map_, population)
    if not stacked:
      return norm, layers.Norm(norm, use_running_average=False)
    mapped = nn.vmap(
      layers.Norm,
      variable_axes={'params': 0, 'batch_stats': 0},
      split_rngs={'params': True},
    )
    return norm, mapped(norm, use_running_average=False)

  x = np.stack([X, 2 * X]) if stacked else X
  _, old = make(ema)
  variables = old.init(jax.random.key(0), x)
  variables |= old.apply(variables, x, mutable=['batch_stats'])[1]
  norm, new = make(norms.Interval(3, ema))
  fresh = new.init(jax.random.key(0), x)
  carried = surgery.carry(variables, fresh, {(): norm})
  assert jax.tree.map(np.shape, carried) == jax.tree.map(np.shape, fresh)
  frozen = norms.freeze(norm)
  model = 1 if stacked else slice(None)
  state = carried['batch_stats'].items()
  state = {
    name: jax.tree.map(lambda leaf: leaf[model] if stacked else leaf, value)
    for name, value in state
  }
  y, _ = frozen.apply(x[model] if stacked else x, state)
  known = norms.freeze(make(ema)[0])
  state = {
    name: leaf[model] if stacked else leaf
    for name, leaf in variables['batch_stats'].items()
  }
  expected, _ = known.apply(x[model] if stacked else x, state)
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_each_layer_has_its_normalization():
  class Two(nn.Module):
    first: norms.Normalization
    second: norms.Normalization

    @nn.compact
    def __call__(self, x):
      for name in ('first', 'second'):
        x = layers.Norm(
          getattr(self, name), use_running_average=False, name=name
        )(x)
      return x

  make = lambda epsilon, population: norms.Normalization(
    norms.Batch(), norms.Whiten('zca', epsilon=epsilon), population
  )
  averages = [make(e, norms.Ema(0.5)) for e in (1e-5, 1.0)]
  intervals = [make(e, norms.Interval(3, norms.Ema(0.5))) for e in (1e-5, 1.0)]
  variables = Two(*averages).init(jax.random.key(0), X)
  variables |= Two(*averages).apply(variables, X, mutable=['batch_stats'])[1]
  fresh = Two(*intervals).init(jax.random.key(0), X)
  paths = {
    (name,): n for name, n in zip(('first', 'second'), intervals, strict=True)
  }
  carried = surgery.carry(variables, fresh, paths)
  for k, name in enumerate(('first', 'second')):
    known = averages[k].population.recall(
      norms.Running(**variables['batch_stats'][name]), averages[k].map
    )
    pair = carried['batch_stats'][name]['pair']
    np.testing.assert_allclose(pair.spread, known.spread, rtol=1e-5)
  alone = surgery.carry(variables, fresh, {('first',): intervals[0]})
  assert alone['batch_stats']['second']['steps'] == 0
