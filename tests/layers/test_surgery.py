"""Replacing, freezing, folding, re-estimating; PyTorch's conventions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from bn_research import norms
from bn_research.layers import linen as linen_layers
from bn_research.layers import nnx as layers
from bn_research.layers import torch
from bn_research.layers.linen import surgery as linen_surgery
from bn_research.layers.nnx import reestimation, surgery
from tests.quick import some, star

WHITENING = norms.batch_whitening('zca', epsilon=1e-3)


class Net(nnx.Module):
  """Two dense layers, a BatchNorm and a whitening Norm."""

  def __init__(self, rngs, second=WHITENING):
    self.dense = nnx.List(
      [nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)]
    )
    self.norms = nnx.List(
      [
        layers.BatchNorm(6, momentum=0.9, rngs=rngs),
        layers.Norm(second, 6, rngs=rngs),
      ]
    )

  def __call__(self, x):
    for dense, norm in zip(self.dense, self.norms, strict=True):
      x = jnp.tanh(norm(dense(x)))
    return x


def batches(*sizes):
  rng = np.random.default_rng(0)
  return [
    jnp.asarray(rng.standard_normal((n, 5)) + k, jnp.float32)
    for k, n in enumerate(sizes)
  ]


@pytest.fixture
def trained():
  model = Net(nnx.Rngs(0))
  for norm in model.norms:
    norm.scale.set_value(jnp.linspace(0.5, 2, 6))
    norm.bias.set_value(jnp.linspace(-1, 1, 6))
  for dense in model.dense:  # zero at first, where a wrong fold hides
    dense.bias.set_value(jnp.linspace(1, 2, 6))
  for x in batches(32, 16, 32, 8):
    model(x)
  return model


def test_folding_keeps_inference(trained):
  (x,) = batches(20)
  trained.eval()
  before = trained(x)
  surgery.fold(
    trained,
    {('norms', k): ('dense', k) for k in range(2)},
  )
  assert trained.norms[0].normalization == norms.none()
  assert jnp.isfinite(before).all()
  np.testing.assert_allclose(trained(x), before, atol=2e-5)


def test_what_depends_on_the_example_is_not_folded():
  model = Net(nnx.Rngs(0), norms.layer_norm())
  with pytest.raises(ValueError, match='cannot be folded'):
    surgery.fold(model, {('norms', 1): ('dense', 1)})


def test_frozen_is_frozen_in_training_mode_too(trained):
  x, other = batches(20, 12)
  trained.eval()
  inference = trained(x)
  surgery.replace(trained, norms.freeze)
  trained.train()
  np.testing.assert_array_equal(trained(x), inference)
  trained(other)
  np.testing.assert_array_equal(trained(x), inference)


def test_frozen_moments_get_no_gradient():
  norm = norms.freeze(norms.batch_norm())
  state = norm.init(3)._replace(mean=jnp.ones(3))
  x = jax.random.normal(jax.random.key(0), (8, 3))
  gradient = jax.grad(lambda x: norm.apply(x, state)[0].sum())(x)
  np.testing.assert_allclose(gradient, 1 / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_nothing_to_freeze_is_said():
  with pytest.raises(ValueError, match='no running statistics to freeze'):
    norms.freeze(norms.layer_norm())


def test_replacing_keeps_what_carries_over(trained):
  mean = trained.norms[0].mean[...]
  scale = trained.norms[0].scale[...]
  surgery.replace(trained, lambda _: norms.batch_norm(group_size=4))
  first = trained.norms[0]
  np.testing.assert_array_equal(first.statistics.mean[...], mean)
  np.testing.assert_array_equal(first.scale[...], scale)
  surgery.replace(
    trained, lambda _: norms.group_norm(2), lambda path: path[-1] == 0
  )
  assert trained.norms[0].normalization == norms.group_norm(2)
  assert trained.norms[1].normalization == norms.batch_norm(group_size=4)


def test_replacing_nothing_is_an_error(trained):
  with pytest.raises(ValueError, match='no normalization to replace'):
    surgery.replace(trained, norms.freeze, lambda path: False)


def test_sync_pools_over_the_axis():
  norm = norms.sync(norms.batch_norm(), 'data')
  x = jax.random.normal(jax.random.key(0), (8, 4, 3))
  state = norm.init(3)
  y, _ = jax.vmap(
    lambda x: norm.apply(x, state), axis_name='data', out_axes=(0, None)
  )(x)
  whole, _ = norms.batch_norm().apply(x.reshape(-1, 3), state)
  np.testing.assert_allclose(y.reshape(-1, 3), whole, atol=1e-6)
  with pytest.raises(ValueError, match='only Batch, Patches and Example'):
    norms.sync(norms.divisive_norm(), 'data')


@pytest.mark.parametrize('in_order', some([True], [False]))
def test_reestimation_pools_exactly(in_order):
  model, data = Net(nnx.Rngs(0)), batches(8, 16, 4)
  reestimation.reestimate(
    model, lambda: data, lambda model, x: model(x), in_order=in_order
  )
  x = np.concatenate(data).astype(np.float64)

  def dense(k, x):
    layer = model.dense[k]
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])

  h = dense(0, x)
  np.testing.assert_allclose(model.norms[0].mean[...], h.mean(0), atol=1e-6)
  np.testing.assert_allclose(model.norms[0].var[...], h.var(0), rtol=1e-5)
  second = model.norms[1].statistics
  g = dense(1, np.tanh((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)))
  apart = np.abs(np.asarray(second.mean[...]) - g.mean(0)).max()
  # Behind layers that normalize by the batch, the second is another.
  assert apart < 1e-6 if in_order else apart > 1e-3
  if in_order:
    np.testing.assert_allclose(
      second.var[...][0], np.cov(g.T, bias=True), atol=1e-6
    )


COMBINED = {
  'refined': norms.batch_whitening('zca', epsilon=1e-3, refinements=1),
  'coloured': norms.Coloured(WHITENING),
  'mixed': norms.Mixture((norms.batch_norm(), norms.layer_norm(), WHITENING)),
}


def outputs(norm, x):
  """Its output in inference, and what it learns from in training."""
  return norm(x, True), norm(x, False, update=False)


@pytest.mark.parametrize('name', some(['mixed'], COMBINED))
def test_combinations_are_reestimated_part_by_part(name):
  """Of one batch as the data set, inference is what training was."""
  norm = nnx.List([layers.Norm(COMBINED[name], 5, rngs=nnx.Rngs(0))])
  (x,) = batches(64)
  reestimation.reestimate(norm, lambda: [x], lambda norm, x: norm[0](x))
  np.testing.assert_allclose(*outputs(norm[0], x), atol=1e-4)


@pytest.mark.parametrize('name', some(['coloured'], COMBINED))
def test_combinations_freeze_and_keep_what_they_learned(name):
  norm = nnx.List([layers.Norm(COMBINED[name], 5, rngs=nnx.Rngs(0))])
  for x in batches(32, 16, 32):
    norm[0](x)
  move = lambda param: param.set_value(param[...] + 0.3)
  is_variable = lambda node: isinstance(node, nnx.Variable)
  jax.tree.map(move, norm[0].learned, is_leaf=is_variable)
  expected = norm[0](x, True)
  surgery.replace(norm, norms.freeze)
  for y in outputs(norm[0], x):
    np.testing.assert_allclose(y, expected, atol=1e-5)
  surgery.replace(norm, lambda norm: norms.sync(norm, 'data'))
  assert "axis_name='data'" in str(norm[0].normalization)
  np.testing.assert_allclose(norm[0](x, True), expected, atol=1e-5)


def test_reestimation_of_matrices_installs_a_matrix():
  norm = norms.decorrelated_batch_norm(group_size=None)
  model, data = Net(nnx.Rngs(0), norm), batches(64, 64)
  reestimation.reestimate(model, lambda: data, lambda model, x: model(x))
  model.eval()
  hidden = model.dense[1](
    jnp.tanh(model.norms[0](model.dense[0](jnp.concatenate(data))))
  )
  y = np.asarray(model.norms[1](hidden), np.float64)
  np.testing.assert_allclose(np.cov(y.T, bias=True), np.eye(6), atol=5e-2)


class LinenNet(nn.Module):
  """A dense layer and a Norm, given."""

  normalization: norms.Normalization
  use_bias: bool = True

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(6, use_bias=True, name='dense')(x)
    return linen_layers.Norm(
      self.normalization,
      use_running_average=not train,
      use_bias=self.use_bias,
      name='norm',
    )(x)


@pytest.mark.parametrize('norm', some([norms.batch_norm()], [WHITENING]))
def test_linen_variables_fold_and_carry(norm):
  (x,) = batches(32)
  model = LinenNet(norm)
  variables = model.init(jax.random.key(0), x, True)
  _, moved = model.apply(variables, x, True, mutable=['batch_stats'])
  variables = {**variables, **moved}
  before = model.apply(variables, x, False)

  folded = linen_surgery.fold(variables, {('norm',): ('dense',)}, norm)
  plain = LinenNet(norms.none(), use_bias=False)
  np.testing.assert_allclose(plain.apply(folded, x, False), before, atol=2e-5)

  frozen = LinenNet(norms.freeze(norm))
  new = frozen.init(jax.random.key(1), x, True)
  carried = linen_surgery.carry(variables, new)
  y, _ = frozen.apply(carried, x, True, mutable=['batch_stats'])
  np.testing.assert_allclose(y, before, atol=1e-6)
  with pytest.raises(ValueError, match='no normalization at'):
    linen_surgery.fold(variables, {('nrom',): ('dense',)}, norm)
  pairs, chain = {('norm',): ('dense',)}, norms.Chain((norm,))
  with pytest.raises(ValueError, match='give its parts as layers'):
    linen_surgery.fold(variables, pairs, chain)


def test_torch_conventions_go_there_and_back():
  state_dict = {
    'features.1.weight': np.array([1.0, 2.0]),
    'features.1.bias': np.array([0.0, 1.0]),
    'features.1.running_mean': np.array([3.0, 4.0]),
    'features.1.running_var': np.array([8.0, 16.0]),
    'features.1.num_batches_tracked': np.array(7),
  }
  layer = torch.from_torch(state_dict, 'features.1.', count=8)
  np.testing.assert_allclose(layer['var'], [7.0, 14.0])
  assert layer['steps'] == 7
  back = torch.to_torch(layer, 'features.1.', count=8)
  assert back.keys() == state_dict.keys()
  for name, value in state_dict.items():
    np.testing.assert_allclose(back[name], value)
  assert torch.momentum(0.1) == pytest.approx(0.9)
  with pytest.raises(ValueError, match=r"it has: 'features\.1\.'\."):
    torch.from_torch(state_dict, 'features.1')
  with pytest.raises(ValueError, match='cumulative'):
    torch.momentum(None)


def test_torch_variance_equals_what_training_there_would_hold():
  """A running variance of one PyTorch step at momentum 1 is the unbiased."""
  x = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
  entries = {'running_mean': x.mean(0), 'running_var': x.var(0, ddof=1)}
  norm = norms.batch_norm(momentum=0.0)
  unbiased = norm.apply(jnp.asarray(x), norm.init(2))[1]
  biased_norm = dataclasses.replace(
    norm, population=norms.Ema(0.0, unbiased=False)
  )
  biased = biased_norm.apply(jnp.asarray(x), norm.init(2))[1]
  np.testing.assert_allclose(
    torch.from_torch(entries)['var'], unbiased.var, rtol=1e-5
  )
  np.testing.assert_allclose(
    torch.from_torch(entries, count=8)['var'], biased.var, rtol=1e-5
  )


class Once(nnx.Module):
  """A norm, called by two names."""

  def __init__(self, norm):
    self.first = norm
    self.again = norm

  def __call__(self, x):
    return self.again(self.first(x))


def of_features(norm, features=3):
  return layers.Norm(norm, features, rngs=nnx.Rngs(0))


def drawn(rows, features=3, seed=0):
  x = np.random.default_rng(seed).standard_normal((rows, features)) + 4
  return jnp.asarray(x, jnp.float32)


TYPES = [
  {},
  {'dtype': jnp.bfloat16},
  {'param_dtype': jnp.bfloat16},
  {'dtype': jnp.float32, 'param_dtype': jnp.float16},
]


@pytest.mark.parametrize(
  ('types', 'x_type'), star(TYPES, ('bfloat16', 'float32'))
)
def test_replacing_keeps_types(types, x_type):
  model = nnx.Sequential(nnx.BatchNorm(3, **types, rngs=nnx.Rngs(0)))
  x = drawn(32).astype(x_type)
  expected = model(x).dtype
  for change in (lambda norm: norm, norms.freeze):
    surgery.replace(model, change)
    norm, y = model.layers[0], model(x)
    assert y.dtype == expected
    assert norm.scale[...].dtype == types.get('param_dtype', jnp.float32)
    assert norm.param_dtype == norm.scale[...].dtype
    assert norm.dtype == types.get('dtype')


def test_a_norm_in_two_places_stays_one():
  model = Once(of_features(norms.batch_norm()))
  surgery.replace(model, norms.freeze, lambda path: path == ('again',))
  assert model.first is model.again
  assert model.first.normalization == norms.freeze(norms.batch_norm())


def test_a_norm_that_nothing_holds_cannot_be_replaced():
  with pytest.raises(ValueError, match='itself a normalization'):
    surgery.replace(of_features(norms.batch_norm()), norms.freeze)


def test_trained_moments_of_flax_outlive_the_next_batch():
  model = nnx.Sequential(nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0)))
  for seed in range(60):
    model(drawn(32, seed=seed))
  mean = model.layers[0].mean[...]
  surgery.replace(model, lambda _: norms.batch_norm(momentum=0.9))
  x = drawn(8)
  model(x)
  # The new batch has one weight in ten, as it had before.
  rate = 0.1
  np.testing.assert_allclose(
    model.layers[0].statistics.mean[...],
    (1 - rate) * mean + rate * x.mean(0),
    rtol=1e-5,
  )


def test_untrained_moments_of_flax_are_forgotten():
  model = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
  surgery.replace(model, lambda _: norms.batch_norm())
  x = drawn(8)
  model(x)
  np.testing.assert_allclose(
    model.layers[0].statistics.mean[...], x.mean(0), rtol=1e-6
  )


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    (norms.batch_norm(), norms.batch_whitening()),
    (norms.batch_norm(), norms.power_norm()),
    (norms.batch_whitening(), norms.iter_norm()),
    (
      norms.batch_norm(),
      norms.Normalization(
        norms.Batch(), norms.Standardize(centre=False), norms.Ema()
      ),
    ),
  ],
)
def test_moments_of_another_meaning_start_afresh(old, new):
  """Their number of updates too, or the first would have no weight."""
  model = nnx.Sequential(of_features(old))
  for seed in range(20):
    model(drawn(32, seed=seed))
  surgery.replace(model, lambda _: new)
  fresh = of_features(new)
  jax.tree.map(
    np.testing.assert_array_equal,
    surgery.state_of(model.layers[0]),
    surgery.state_of(fresh),
  )


def test_what_is_made_of_normalizations_is_frozen_whole():
  parts = (norms.layer_norm(), norms.batch_norm())
  model = nnx.Sequential(
    of_features(norms.Chain(parts)),
    of_features(norms.Coloured(norms.batch_norm())),
    of_features(norms.Mixture(parts)),
  )
  model.layers[1].learned['colouring'].set_value(jnp.diag(jnp.arange(1.0, 4)))
  for seed in range(5):
    model(drawn(32, seed=seed))
  model.eval()
  inference = model(drawn(8))
  surgery.replace(model, norms.freeze)
  model.train()
  for _ in range(2):
    np.testing.assert_allclose(model(drawn(8)), inference, atol=1e-5)


@pytest.mark.parametrize(
  'change', [norms.freeze, lambda norm: norms.sync(norm, 'data')]
)
def test_what_has_no_axes_says_so(change):
  with pytest.raises(ValueError, match='is not a norms'):
    change(norms.create('evonorm_b0'))


def test_reestimation_mends_moments_that_are_not_finite():
  model = nnx.Sequential(layers.BatchNorm(3, rngs=nnx.Rngs(0)))
  model.layers[0].mean.set_value(jnp.full(3, jnp.nan))
  x = drawn(16)
  reestimation.reestimate(model, lambda: [x], lambda model, x: model(x))
  np.testing.assert_allclose(model.layers[0].mean[...], x.mean(0), rtol=1e-6)


@pytest.mark.parametrize('cause', ['no batches', 'inference'])
def test_reestimation_that_measures_nothing_is_an_error(cause):
  model = nnx.Sequential(of_features(norms.batch_norm()))
  if cause == 'inference':
    model.eval()
  batches = [] if cause == 'no batches' else [drawn(16)]
  with pytest.raises(ValueError, match='met no batch'):
    reestimation.reestimate(model, lambda: batches, lambda model, x: model(x))


def test_reestimation_of_what_cannot_be_pooled_is_an_error():
  model = nnx.Sequential(of_features(norms.create('evonorm_b0')))
  with pytest.raises(ValueError, match='its moments cannot be pooled'):
    reestimation.reestimate(
      model, lambda: [drawn(16)], lambda model, x: model(x)
    )


@pytest.mark.parametrize('features', [3, 4])
def test_linen_moments_are_carried_whole_and_counted(features):
  """Flax's own count no updates; of another width, nothing is taken."""
  trained = {'mean': jnp.full(3, 2.0), 'var': jnp.full(3, 0.5)}
  old = {'params': {}, 'batch_stats': {'norm': trained}}
  norm = norms.batch_norm()
  fresh = norm.init(features)._asdict()
  new = {'params': {}, 'batch_stats': {'norm': fresh}}
  carried = linen_surgery.carry(old, new)['batch_stats']['norm']
  if features == 4:
    jax.tree.map(np.testing.assert_array_equal, carried, fresh)
  else:
    np.testing.assert_array_equal(carried['mean'], trained['mean'])
    assert carried['steps'] == carried['weight'] == 1


@pytest.mark.parametrize(
  'norm',
  some(
    [norms.batch_whitening(every=2)],
    [norms.Chain((norms.batch_norm(), norms.batch_whitening()))],
  ),
)
def test_linen_carries_states_of_several_parts(norm):
  model = linen_layers.Norm(norm, use_running_average=False)
  fresh = model.init(jax.random.key(0), drawn(16))
  _, moved = model.apply(fresh, drawn(16), mutable=['batch_stats'])
  trained = {**fresh, **moved}
  jax.tree.map(
    np.testing.assert_array_equal, linen_surgery.carry(trained, fresh), trained
  )
