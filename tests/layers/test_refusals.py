"""What surgery and `Norm` refuse: one sentence, and the model unchanged."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import norms
from bn_research.layers import linen as linen_layers
from bn_research.layers import nnx as layers
from bn_research.layers.linen import surgery as linen_surgery
from bn_research.layers.nnx import reestimation, surgery
from tests.quick import some


class Net(nnx.Module):
  """A dense layer of 4 outputs, its norm, and a norm of 6 features."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.d = nnx.Linear(3, 4, rngs=rngs)
    self.norm = layers.BatchNorm(4, rngs=rngs)
    self.wide = layers.Norm(norms.batch_norm(), 6, rngs=rngs)
    self.all = nnx.List([nnx.Linear(3, 4, rngs=rngs)])

  def __call__(self, x):
    return self.norm(self.d(x))


def refused(model, attempt, kind, message):
  """Asserts that an attempt raises a sentence and leaves the model as it is."""
  before, modules = nnx.clone(model), dict(nnx.iter_modules(model))
  with pytest.raises(kind, match=message) as error:
    attempt(model)
  assert error.type is kind
  assert '\n' not in str(error.value)
  assert str(error.value).endswith('.')
  after = dict(nnx.iter_modules(model))
  assert after.keys() == modules.keys()
  assert all(after[path] is module for path, module in modules.items())
  state = nnx.state(model)
  jax.tree.map(np.testing.assert_array_equal, state, nnx.state(before))


PAIRS = {
  'unknown norm': ({('nrom',): ('d',)}, r"no layer at \('nrom',\).*'norm'"),
  'unknown layer': ({('norm',): ('dense',)}, r"at \('dense',\).*\('d',\)"),
  'no such index': ({('norm',): ('all', 7)}, r"no layer at \('all', 7\)"),
  'index from the end': ({('norm',): ('all', -1)}, 'no layer at'),
  'texts': ({'norm': 'd'}, "the path 'norm' in pairs is a str; give a tuple"),
  'a list': ({('norm',): ['d']}, r"the path \['d'\] in pairs is a list"),
  'no dict': ([(('norm',), ('d',))], 'pairs is a list; give a dict'),
  'swapped': ({('d',): ('norm',)}, r"the model has a Linear at \('d',\)"),
  'a variable': ({('norm', 'scale'): ('d',)}, 'the model has no layer at'),
  'another width': ({('wide',): ('d',)}, '4 outputs, .* has 6 features'),
  'whole': (
    {('norm',): ('d',), ('wide',): ('all', 0)},
    '4 outputs, .* has 6 features',
  ),
}


@pytest.mark.parametrize('name', PAIRS)
def test_pairs_that_cannot_be_folded(name):
  pairs, message = PAIRS[name]
  fold = functools.partial(surgery.fold, pairs=pairs)
  refused(Net(), fold, ValueError, message)


@pytest.mark.parametrize('name', ['texts', 'a list', 'no dict'])
def test_linen_refuses_the_same_pairs(name):
  pairs, message = PAIRS[name]
  statistics = {'norm': {'mean': jnp.zeros(4), 'var': jnp.ones(4)}}
  variables = {
    'params': {'d': {'kernel': jnp.ones((3, 4))}},
    'batch_stats': statistics,
  }
  with pytest.raises(ValueError, match=message):
    linen_surgery.fold(variables, pairs, norms.batch_norm())


class Half:
  """Not all methods of a normalization."""

  def init(self, num_features, dtype=None):
    return ()


NONE = {
  'None': (None, 'None, a NoneType; give a normalization such as'),
  'a function': (norms.batch_norm, 'batch_norm, a function; call it'),
  'a class': (norms.Chain, 'Chain, a .*; call it'),
  'a partial': (
    functools.partial(norms.batch_norm, 0.9),
    'partial, a partial; call it',
  ),
  'a text': ('batch_norm', r"'batch_norm', a str; give norms\.create\("),
  'half': (Half(), 'a Half without learned, apply, remembers, scales; give'),
  'a part': (
    norms.Chain((norms.layer_norm(), norms.batch_norm)),
    'batch_norm, a function; call it',
  ),
  'a part of a part': (
    norms.Chain((norms.Chain((norms.batch_norm,)), norms.layer_norm())),
    'batch_norm, a function; call it',
  ),
}


@pytest.mark.parametrize('name', NONE)
def test_what_is_no_normalization(name):
  value, message = NONE[name]
  start = 'a part of ' if name in ('a part', 'a part of a part') else ''
  message = f'normalization is {message}'
  rngs = nnx.Rngs(0)
  for use_scale in (None, True):
    with pytest.raises(TypeError, match=f'^{start}{message}'):
      layers.Norm(value, 4, use_scale=use_scale, rngs=rngs)
  with pytest.raises(TypeError, match=f'^{start}{message}'):
    linen_layers.Norm(value).init(jax.random.key(0), jnp.ones((2, 4)), True)

  def assign(model):
    model.wide.normalization = value

  refused(Net(), assign, TypeError, f'^{start}{message}')


@pytest.mark.parametrize('name', NONE)
def test_a_change_that_returns_no_normalization(name):
  value, message = NONE[name]
  message = rf"\('wide',\): the result of `change` is {message}"
  old = norms.batch_norm()
  change = lambda norm: value if norm == old else norms.freeze(norm)
  replace = lambda model: surgery.replace(model, change)
  refused(Net(), replace, TypeError, message)


def test_a_change_that_is_no_function():
  replace = lambda model: surgery.replace(model, norms.group_norm(2))
  refused(Net(), replace, TypeError, '^change is a Normalization; give a func')


UNFIT = {
  'groups': norms.group_norm(3),
  'group size': norms.group_norm(None, group_size=3),
  'evonorm': norms.EvoNormS0(3),
  'chain': norms.Chain((norms.batch_norm(), norms.group_norm(3))),
  'coloured': norms.Coloured(norms.group_norm(3)),
  'whitening of examples': norms.instance_whitening(group_size=5),
  'whitening without memory': norms.Normalization(
    norms.Batch(), norms.Whiten('zca', 5)
  ),
  'whitening': norms.batch_whitening(group_size=5),
  'groups of whitening': norms.group_whitening(3),
}


@pytest.mark.parametrize('name', UNFIT)
def test_groups_that_do_not_fit(name):
  """All or nothing: the norm of 6 features comes last and fits."""
  norm = UNFIT[name]
  message = 'does not divide the number of channels, 4|more than the 4 channels'
  replace = lambda model: surgery.replace(model, lambda _: norm)
  refused(Net(), replace, ValueError, rf"^\('norm',\): .*({message})")
  with pytest.raises(ValueError, match=message):
    layers.Norm(norm, 4, rngs=nnx.Rngs(0))
  layers.Norm(norm, 6, rngs=nnx.Rngs(0))  # 3 divides 6, and 5 is below 6


FIT = {
  **{name: functools.partial(norms.create, name) for name in norms.NAMES},
  'virtual_batch_norm': lambda: norms.virtual_batch_norm(2),
  'groups of examples': lambda: norms.batch_norm(group_size=3),
  'the last group of whitening': lambda: norms.batch_whitening(group_size=3),
  'axes by number': lambda: norms.Normalization(
    norms.Example((1, 2)), norms.Standardize()
  ),
}
DEFAULTS = {
  'group_norm',
  'evonorm_s0',
  'group_whitening',
  'decorrelated_batch_norm',
}


@pytest.mark.parametrize(
  'name', some(['instance_norm', 'virtual_batch_norm'], FIT)
)
def test_what_works_is_accepted(name):
  """Also a scope that needs more axes than the features."""
  features = 32 if name in DEFAULTS else 4
  norm = FIT[name]()
  layer = layers.Norm(norm, features, rngs=nnx.Rngs(0))
  x = jnp.ones((4, 2, 2, features))
  run = lambda x: layer(x, update=False)
  assert jax.eval_shape(run, x).shape == x.shape


def test_a_model_without_norms_is_told_what_is_found():
  model = nnx.Sequential(nnx.LayerNorm(4, rngs=nnx.Rngs(0)))
  replace = lambda model: surgery.replace(model, norms.freeze)
  refused(model, replace, ValueError, 'finds Norm of .* has none of these')
  nowhere = lambda model: surgery.replace(model, norms.freeze, lambda _: False)
  refused(
    Net(), nowhere, ValueError, r"none of the paths \('norm',\), \('wide'"
  )


@pytest.mark.parametrize('momentum', [2.0, -0.1, None])
def test_a_momentum_out_of_range(momentum):
  start = re.escape(f'momentum={momentum} must be in ')
  of_flax = lambda: norms.Ema(momentum, debias=False)
  options = {'momentum': momentum, 'use_running_average': True}
  for attempt in (
    of_flax,
    lambda: layers.BatchNorm(4, momentum=momentum, rngs=nnx.Rngs(0)),
    lambda: linen_layers.BatchNorm(**options).init(
      jax.random.key(0), jnp.ones((2, 4))
    ),
  ):
    with pytest.raises(ValueError, match=rf'^{start}\[0, 1\]: ') as error:
      attempt()
    assert 'update' not in str(error.value)
  with pytest.raises(ValueError, match=rf'^{start}\[0, 1\): .*update=False'):
    norms.batch_norm(momentum)
  layer = layers.BatchNorm(4, momentum=1.0, rngs=nnx.Rngs(0))
  layer(jnp.ones((2, 4)))
  np.testing.assert_array_equal(layer.mean[...], 0)


class Doubled(nnx.BatchNorm):
  """A class of the user that computes something else."""

  def __call__(self, x, use_running_average=None, *, mask=None):
    return 2 * super().__call__(x, use_running_average, mask=mask)


class Renamed(layers.BatchNorm):
  """A class of the user that computes the same."""


def own_promotion(arrays, dtype=None):
  return tuple(array.astype(jnp.float32) for array in arrays)


OWN = {
  'call': (lambda rngs: Doubled(4, rngs=rngs), 'Doubled is a subclass'),
  'promotion': (
    lambda rngs: layers.BatchNorm(4, promote_dtype=own_promotion, rngs=rngs),
    'has its own promote_dtype',
  ),
}


@pytest.mark.parametrize('name', OWN)
def test_code_of_the_user_is_not_lost(name):
  make, message = OWN[name]
  model = Net()
  model.norm = make(nnx.Rngs(0))
  message = rf"^\('norm',\): .*{message}.*a Norm would lose"
  attempts = (
    lambda model: surgery.replace(model, norms.freeze),
    lambda model: surgery.fold(model, {('norm',): ('d',)}),
    lambda model: reestimation.reestimate(
      model, lambda: [jnp.ones((2, 3))], lambda model, x: model(x)
    ),
  )
  for attempt in attempts:
    refused(model, attempt, ValueError, message)
  surgery.replace(model, norms.freeze, lambda path: path == ('wide',))


def test_a_subclass_that_computes_the_same_is_replaced():
  model = Net()
  model.norm = Renamed(4, rngs=nnx.Rngs(0))
  surgery.replace(model, norms.freeze)
  assert type(model.norm) is layers.Norm
