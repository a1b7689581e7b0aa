"""States of linen layers: carried between populations, and restored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bn_research import norms
from bn_research.layers import linen as layers
from bn_research.layers.linen import surgery

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
  carried = surgery.carry(variables, fresh, norm)
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
  weight = 1 - 0.5**3 if old in ('ema', 'plain', 'accumulated') else 1.0
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
  pair = surgery.carry(variables, fresh, norm)['batch_stats']['pair']
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
    carried = surgery.carry({'batch_stats': statistics}, fresh, norm)
    assert carried['batch_stats']['weight'] == 1
    np.testing.assert_array_equal(carried['batch_stats']['mean'], mean)
    expected = (X - mean) / np.sqrt(mean + 1 + 1e-5)
    np.testing.assert_allclose(infer(layer, carried), expected, atol=1e-5)
