"""Surgery on models that people have: stacked, in containers, partitioned."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType

from bn_research import norms
from bn_research.layers import linen as linen_layers
from bn_research.layers import nnx as layers
from bn_research.layers.linen import surgery as linen_surgery
from bn_research.layers.nnx import reestimation, surgery
from tests.own_statistics import Median
from tests.quick import some, star


def stacked(make):
  """Three models in one, with statistics that differ."""

  @nnx.vmap(in_axes=0, out_axes=0)
  def create(key):
    rngs = nnx.Rngs(key)
    return nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), make(rngs))

  model = create(jax.random.split(jax.random.key(0), 3))
  x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8, 4)), 'f4')
  run(model, x)
  return model, x


@nnx.vmap(in_axes=(0, 0), out_axes=0)
def run(model, x):
  return model(x)


MAKERS = {
  'batch_norm': lambda rngs: layers.BatchNorm(4, momentum=0.5, rngs=rngs),
  'flax': lambda rngs: nnx.BatchNorm(4, momentum=0.5, rngs=rngs),
  'norm': lambda rngs: layers.Norm(norms.batch_norm(0.5), 4, rngs=rngs),
  'whitening': lambda rngs: layers.Norm(
    norms.batch_whitening('zca', momentum=0.5, every=2), 4, rngs=rngs
  ),
  'chain': lambda rngs: layers.Norm(
    norms.Chain((norms.batch_norm(0.5), norms.layer_norm())), 4, rngs=rngs
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', some(['batch_norm', 'chain'], MAKERS))
def test_stacked_models_are_frozen_with_their_statistics(name):
  model, x = stacked(MAKERS[name])
  model.eval()
  expected = run(model, x)
  surgery.replace(model, norms.freeze)
  model.train()
  np.testing.assert_allclose(run(model, x), expected, atol=1e-6)


@pytest.mark.slow
def test_what_starts_afresh_in_stacked_models_is_stacked():
  model, x = stacked(MAKERS['norm'])
  surgery.replace(
    model, lambda _: norms.batch_whitening('zca', momentum=0.5, epsilon=1e-2)
  )
  y = run(model, x)
  assert y.shape == x.shape
  assert model.layers[1].statistics.var.shape == (3, 1, 4, 4)
  np.testing.assert_array_equal(model.layers[1].statistics.steps[...], 1)


def test_arrays_of_shapes_that_nothing_explains_are_told():
  model = nnx.Sequential(layers.BatchNorm(4, rngs=nnx.Rngs(0)))
  model.layers[0].mean = nnx.BatchStat(jnp.zeros((4, 3)))
  before = model.layers[0]
  with pytest.raises(ValueError, match='stacked along leading axes'):
    surgery.replace(model, norms.freeze)
  assert model.layers[0] is before


class Pair(typing.NamedTuple):
  first: typing.Any
  second: typing.Any


def make_norm():
  return layers.BatchNorm(4, rngs=nnx.Rngs(0))


CONTAINERS = {
  'dict': lambda: {'a': make_norm()},
  'dict of numbers': lambda: {0: make_norm()},
  'list': lambda: [make_norm(), 3],
  'tuple': lambda: (make_norm(), make_norm()),
  'named tuple': lambda: Pair(make_norm(), make_norm()),
  'nested': lambda: {'a': [(make_norm(),)]},
  'nnx.List': lambda: nnx.List([make_norm()]),
  'nnx.Dict': lambda: nnx.Dict(a=make_norm()),
  'list of dicts': lambda: [{'a': make_norm()}, {'b': (make_norm(),)}],
}


@pytest.mark.parametrize('kind', CONTAINERS)
def test_any_container_holds_what_is_replaced(kind):
  model = nnx.Module()
  model.more = nnx.data(CONTAINERS[kind]())
  count = len(list(surgery.normalizations(model)))
  surgery.replace(model, norms.freeze)
  found = [layer for _, layer in surgery.normalizations(model)]
  assert len(found) == count > 0
  assert all(
    isinstance(layer, layers.Norm)
    and layer.normalization.gradient is norms.frozen
    for layer in found
  )


def test_all_are_replaced_or_none():
  class Model(nnx.Module):
    def __init__(self, rngs):
      self.a = layers.BatchNorm(4, rngs=rngs)
      self.b = layers.Norm(norms.layer_norm(), 4, rngs=rngs)
      self.c = layers.BatchNorm(4, rngs=rngs)

  model = Model(nnx.Rngs(0))
  before = [model.a, model.b, model.c]
  with pytest.raises(ValueError, match='no running statistics to freeze'):
    surgery.replace(model, norms.freeze)
  assert [model.a, model.b, model.c] == before


class Closed:
  """A container that cannot be changed."""

  __slots__ = ('norm',)

  def __init__(self, norm):
    object.__setattr__(self, 'norm', norm)

  def __setattr__(self, name, value):
    raise AttributeError('closed')


jax.tree_util.register_pytree_with_keys(
  Closed,
  lambda c: (((jax.tree_util.GetAttrKey('norm'), c.norm),), None),
  lambda _, children: Closed(*children),
)


def test_a_container_that_is_closed_leaves_the_model_as_it_was():
  model = nnx.Module()
  model.a = make_norm()
  model.z = nnx.data(Closed(make_norm()))
  before = model.a
  if len(list(surgery.normalizations(model))) < 2:
    pytest.skip('this version of flax does not look into such a container')
  with pytest.raises(ValueError, match='cannot be changed'):
    surgery.replace(model, norms.freeze)
  assert model.a is before


def test_metadata_and_class_stay():
  class Mine(layers.Norm):
    """A subclass with an attribute of its own."""

  init = nnx.with_partitioning(nnx.initializers.ones, ('model',))
  model = nnx.Module()
  mesh = jax.make_mesh((1,), ('model',), axis_types=(AxisType.Auto,))
  with jax.set_mesh(mesh):
    check_metadata(model, Mine, init)


def check_metadata(model, Mine, init):
  model.mine = Mine(norms.batch_norm(), 4, scale_init=init, rngs=nnx.Rngs(0))
  model.mine.tag = 'kept'
  model.flax = nnx.BatchNorm(4, scale_init=init, rngs=nnx.Rngs(0))
  model.flax.mean.set_metadata('note', 7)
  sharding = lambda: [
    layer.scale.get_metadata('out_sharding', None)
    for layer in (model.mine, model.flax)
  ]
  before = sharding()
  surgery.replace(model, norms.freeze)
  assert type(model.mine) is Mine
  assert model.mine.tag == 'kept'
  assert sharding() == before
  assert before[0] is not None
  assert model.flax.statistics.mean.get_metadata('note') == 7


def test_linen_carries_values_into_partitions():
  partitioned = nn.with_partitioning(nn.initializers.ones, ('model',))
  x = jnp.ones((8, 4))
  plain = linen_layers.Norm(norms.batch_norm(), use_running_average=False)
  boxed = linen_layers.Norm(
    norms.batch_norm(), use_running_average=False, scale_init=partitioned
  )
  variables = {
    n: m.init(jax.random.key(0), x)
    for n, m in (('plain', plain), ('boxed', boxed))
  }
  trained = jax.tree.map(lambda leaf: leaf + 2, variables)
  to_boxed = linen_surgery.carry(trained['plain'], variables['boxed'])
  scale = to_boxed['params']['scale']
  assert isinstance(scale, nn.Partitioned)
  np.testing.assert_array_equal(scale.value, 3)
  to_plain = linen_surgery.carry(trained['boxed'], variables['plain'])
  assert to_plain['params']['scale'].names == ('model',)
  np.testing.assert_array_equal(to_plain['params']['scale'].value, 3)


def test_linen_carries_the_statistics_of_a_layer_whole():
  """An interval normalizes by what an average has not."""
  x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)) + 3, 'f4')
  average, interval = (
    linen_layers.Norm(
      norms.Normalization(norms.Batch(), norms.Standardize(), population),
      use_running_average=False,
    )
    for population in (norms.Ema(0.5), norms.Interval(9, norms.Ema(0.5)))
  )
  variables = average.init(jax.random.key(0), x)
  _, moved = average.apply(variables, x, mutable=['batch_stats'])
  fresh = interval.init(jax.random.key(0), x)
  carried = linen_surgery.carry({**variables, **moved}, fresh)
  jax.tree.map(np.testing.assert_array_equal, carried, fresh)
  back = linen_surgery.carry(fresh, {**variables, **moved})['batch_stats']
  np.testing.assert_array_equal(back['mean'], 0)


def batches(count=4, features=6):
  rng = np.random.default_rng(0)
  return [
    jnp.asarray(rng.standard_normal((50, features)) * (k + 1) + 3 * k, 'f4')
    for k in range(count)
  ]


class Two(nnx.Module):
  """Two norms, called in the order of the names that are given."""

  def __init__(self, first, second, make):
    rngs = nnx.Rngs(0)
    setattr(self, first, make(rngs))
    setattr(self, second, make(rngs))
    self.names = (first, second)
    self.linear = nnx.Linear(6, 6, rngs=rngs)

  def __call__(self, x):
    first, second = (getattr(self, name) for name in self.names)
    return second(jnp.tanh(self.linear(first(x))))


@pytest.mark.parametrize(
  ('name', 'names'), star(['batch_norm', 'norm'], [('b', 'a'), ('a', 'b')])
)
def test_reestimation_follows_the_calls_and_not_the_names(names, name):
  makers = {
    'batch_norm': lambda rngs: layers.BatchNorm(6, rngs=rngs),
    'norm': lambda rngs: layers.Norm(norms.batch_norm(), 6, rngs=rngs),
  }
  model = Two(*names, makers[name])
  data = batches()
  reestimation.reestimate(model, lambda: data, lambda m, x: m(x))
  whole = np.concatenate(data).astype(np.float64)
  white = (whole - whole.mean(0)) / np.sqrt(whole.var(0) + 1e-5)
  kernel, bias = (
    np.asarray(leaf[...], np.float64)
    for leaf in (model.linear.kernel, model.linear.bias)
  )
  hidden = np.tanh(white @ kernel + bias)
  last = getattr(model, names[1])
  mean = last.mean if name == 'batch_norm' else last.statistics.mean
  np.testing.assert_allclose(mean[...], hidden.mean(0), atol=1e-4)


POPULATIONS = {
  'ema': (norms.Ema(0.99), 0.01),
  'cumulative': (norms.Cumulative(), 1 / 4),
  'accumulated': (norms.Accumulated(1, norms.Ema(0.9)), 0.1),
}


@pytest.mark.parametrize('name', POPULATIONS)
def test_a_step_after_reestimation_moves_and_does_not_forget(name):
  population, rate = POPULATIONS[name]
  norm = norms.Normalization(norms.Batch(), norms.Standardize(), population)
  model = nnx.Sequential(layers.Norm(norm, 6, rngs=nnx.Rngs(0)))
  data = batches(3)
  reestimation.reestimate(model, lambda: data, lambda m, x: m(x))
  whole = np.concatenate(data).astype(np.float64)
  statistics = model.layers[0].statistics
  np.testing.assert_allclose(statistics.mean[...], whole.mean(0), rtol=1e-5)
  np.testing.assert_allclose(statistics.var[...], whole.var(0), rtol=1e-5)
  x = jnp.full((8, 6), -5.0)
  model(x)
  moved = (1 - rate) * whole.mean(0) + rate * -5
  np.testing.assert_allclose(
    model.layers[0].statistics.mean[...], moved, rtol=1e-5
  )


def test_reestimation_of_a_trained_model_keeps_its_count_of_updates():
  """Schedules, such as the bounds of renormalization, read the count."""
  model = nnx.Sequential(layers.Norm(norms.batch_norm(), 6, rngs=nnx.Rngs(0)))
  data = batches(3)
  for x in (*data, *data):
    model(x)
  reestimation.reestimate(model, lambda: data, lambda m, x: m(x))
  assert model.layers[0].statistics.steps[...] == 6


def test_norms_with_arrays_are_reestimated_and_frozen():
  model = nnx.Sequential(
    layers.Norm(norms.batch_norm(jnp.float32(0.5)), 6, rngs=nnx.Rngs(0))
  )
  data = batches(3)
  reestimation.reestimate(model, lambda: data, lambda m, x: m(x))
  whole = np.concatenate(data).astype(np.float64)
  mean = model.layers[0].statistics.mean
  np.testing.assert_allclose(mean[...], whole.mean(0), rtol=1e-5)
  surgery.replace(model, norms.freeze)
  model(data[0])
  mean = model.layers[0].statistics.mean
  np.testing.assert_allclose(mean[...], whole.mean(0), rtol=1e-5)


def test_an_interval_normalizes_by_what_was_measured():
  norm = norms.batch_whitening('zca', every=5, epsilon=1e-3)
  model = nnx.Sequential(layers.Norm(norm, 6, rngs=nnx.Rngs(0)))
  data = batches(3)
  reestimation.reestimate(model, lambda: data, lambda m, x: m(x))
  model.eval()
  y = np.asarray(model(jnp.concatenate(data)), np.float64)
  np.testing.assert_allclose(np.cov(y.T, bias=True), np.eye(6), atol=5e-3)


def test_statistics_that_do_not_merge_are_not_reestimated():
  norm = norms.Normalization(norms.Batch(), Median(), norms.Ema())
  model = nnx.Sequential(layers.Norm(norm, 6, rngs=nnx.Rngs(0)))
  with pytest.raises(ValueError, match=r'of .*Median.* do not merge'):
    reestimation.reestimate(model, batches, lambda m, x: m(x))


OTHERS = {
  'ema': norms.Ema(0.5),
  'cumulative': norms.Cumulative(),
  'accumulated': norms.Accumulated(1, norms.Ema(0.5)),
  'interval': norms.Interval(1, norms.Cumulative()),
  'fixed': norms.Fixed(),
}


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    *(('ema', 'cumulative'), ('cumulative', 'interval'), ('fixed', 'ema')),
    *(
      pytest.param(old, new, marks=pytest.mark.slow)
      for old in OTHERS
      for new in OTHERS
    ),
  ],
)
def test_a_state_goes_on_in_another_population(old, new):
  """Inference stays; the next batch moves as the new population says."""
  make = lambda name: norms.Normalization(
    norms.Batch(), norms.Standardize(), OTHERS[name]
  )
  model = nnx.Sequential(layers.Norm(make(old), 6, rngs=nnx.Rngs(0)))
  for x in batches(3):
    model(x)
  model.eval()
  x = batches(1)[0]
  expected = model(x)
  surgery.replace(model, lambda _: make(new))
  np.testing.assert_allclose(model(x), expected, atol=1e-5)
  before = model.layers[0].statistics.mean[...]
  model.train()
  model(x + 9)
  after = model.layers[0].statistics.mean[...]
  rate = float(((after - before) / ((x + 9).mean(0) - before))[0])
  is_old = old == 'fixed'
  rates = {'cumulative': 1.0 if is_old else 1 / 4, 'fixed': 0.0}
  rates['interval'] = rates['cumulative']
  shares = (
    0.5 / (0.5 + 0.5 * (1 - 0.5**3)) if old in ('ema', 'accumulated') else 0.5
  )
  expected = rates.get(new, 1.0 if is_old else shares)
  np.testing.assert_allclose(rate, expected, rtol=1e-3)


def test_to_freeze_the_frozen_changes_nothing():
  for norm in (norms.batch_norm(), norms.batch_whitening('zca', every=2)):
    frozen = norms.freeze(norm)
    assert norms.freeze(frozen) == frozen


def test_a_new_map_makes_a_new_pair_at_an_interval():
  make = lambda method: norms.Normalization(
    norms.Batch(),
    norms.Whiten(method, epsilon=1e-2),
    norms.Interval(1000, norms.Ema(0.5)),
  )
  model = nnx.Sequential(layers.Norm(make('zca'), 6, rngs=nnx.Rngs(0)))
  model(batches(1)[0])
  (layer,) = model.layers
  before = layer.statistics.pair.spread[...]
  surgery.replace(model, lambda _: make('zca'))
  np.testing.assert_array_equal(
    model.layers[0].statistics.pair.spread[...], before
  )
  surgery.replace(model, lambda _: make('cholesky'))
  statistics = model.layers[0].statistics
  expected = make('cholesky').map.recall(
    statistics.mean[...], statistics.var[...]
  )
  np.testing.assert_allclose(
    statistics.pair.spread[...], expected.spread, rtol=1e-5
  )
