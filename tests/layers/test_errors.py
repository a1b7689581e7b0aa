"""Bad calls: an error that names what is wrong, the same from both families."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from bn_research.layers import linen as our_linen
from bn_research.layers import nnx as our_nnx

_X = jnp.ones((4, 3, 8))


def _call_linen(name, x, made_for, call, **options):
  layer = getattr(our_linen, name)(**options)
  first = {key: value for key, value in call.items() if key != 'mask'}
  variables = layer.init(jax.random.key(0), made_for, **first)
  layer.apply(variables, x, **call, mutable=['batch_stats'])


def _call_nnx(name, x, made_for, call, **options):
  features = made_for.shape[-1]
  getattr(our_nnx, name)(features, **options, rngs=nnx.Rngs(0))(x, **call)


def _messages(name, x, made_for=_X, call=None, **options):
  """The errors of both families for a layer made for other activations."""
  call = dict(call or {})
  if name == 'BatchNorm':
    call['use_running_average'] = False
  messages = []
  for attempt in (_call_linen, _call_nnx):
    with pytest.raises((TypeError, ValueError)) as error:
      attempt(name, x, made_for, call, **options)
    messages.append(f'{error.type.__name__}: {error.value}')
  return messages


BAD = {
  'integers': (
    'BatchNorm',
    {'x': jnp.ones((4, 8), int)},
    'TypeError: x is int32; a normalization needs floating activations',
  ),
  'integers, narrow result': (
    'LayerNorm',
    {'x': jnp.ones((4, 8), int), 'dtype': jnp.bfloat16},
    'TypeError: x is int32; a normalization needs floating activations',
  ),
  'complex': (
    'BatchNorm',
    {'x': jnp.ones((4, 8), jnp.complex64)},
    'TypeError: x is complex64; a normalization here is of real activations: '
    'give real and imaginary parts as features',
  ),
  'complex, example': (
    'GroupNorm',
    {'x': jnp.ones((4, 8), jnp.complex64), 'num_groups': 2},
    'TypeError: x is complex64; a normalization here is of real activations: '
    'give real and imaginary parts as features',
  ),
  'complex result': (
    'LayerNorm',
    {'x': _X, 'dtype': jnp.complex64},
    'TypeError: dtype=complex64 is not floating; choose a type such as float32',
  ),
  'no rows': (
    'BatchNorm',
    {'x': jnp.ones((0, 3, 8))},
    'ValueError: x of shape (0, 3, 8) has no activations',
  ),
  'other features': (
    'BatchNorm',
    {'x': jnp.ones((4, 5))},
    'ValueError: x of shape (4, 5) has features of shape (5,)',
  ),
  'other features, no affine': (
    'BatchNorm',
    {'x': jnp.ones((4, 5)), 'use_scale': False, 'use_bias': False},
    'ValueError: x of shape (4, 5) has features of shape (5,)',
  ),
  'other features, example': (
    'LayerNorm',
    {'x': jnp.ones((4, 5))},
    'ValueError: x of shape (4, 5) has features of shape (5,)',
  ),
  'no such axis': (
    'LayerNorm',
    {'x': _X, 'made_for': _X, 'reduction_axes': 3},
    'ValueError: axis 3 does not exist in an array of 3 axes',
  ),
  'no such feature axis': (
    'BatchNorm',
    {'x': _X, 'axis': -4},
    'ValueError: axis -4 does not exist in an array of 3 axes',
  ),
  'groups without channels': (
    'GroupNorm',
    {'x': _X, 'num_groups': 2, 'reduction_axes': (1,)},
    'ValueError: groups are of channels',
  ),
  'examples as features': (
    'InstanceNorm',
    {'x': _X, 'feature_axes': (0, 2)},
    'ValueError: The channel axes cannot include the leading dimension as this '
    'is assumed to be the batch axis; feature_axes=(0, 2) does.',
  ),
  'mask': (
    'BatchNorm',
    {'x': _X, 'call': {'mask': jnp.ones((5, 1, 1), bool)}},
    'ValueError: mask of shape (5, 1, 1) does not broadcast against x',
  ),
  'type of the result': (
    'RMSNorm',
    {'x': _X, 'dtype': jnp.int32},
    'ValueError: Dtype must be inexact',
  ),
}


@pytest.mark.parametrize(
  ('name', 'arguments', 'expected'), BAD.values(), ids=BAD
)
def test_the_same_message_from_both_families(name, arguments, expected):
  messages = _messages(name, **arguments)
  assert messages[0] == messages[1]
  assert messages[0].startswith(expected)


@pytest.mark.parametrize('name', ['BatchNorm', 'LayerNorm', 'GroupNorm'])
def test_an_unbound_axis(name):
  options = {'num_groups': 2} if name == 'GroupNorm' else {}
  messages = _messages(name, _X, axis_name='data', **options)
  assert messages[0] == messages[1]
  assert "axis_name='data' is not bound here" in messages[0]


def test_groups_are_given_once_and_divide():
  for options in (
    {'num_groups': None},
    {'num_groups': 2, 'group_size': 4},
    {'num_groups': 3},
    {'num_groups': 0},
    {'num_groups': None, 'group_size': 3},
  ):
    for source in (linen, our_linen):
      with pytest.raises(ValueError, match=r'group'):
        source.GroupNorm(**options).init(jax.random.key(0), _X)
    for source in (nnx, our_nnx):
      with pytest.raises(ValueError, match=r'group'):
        source.GroupNorm(8, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
  'options',
  [{'num_groups': 3}, {'num_groups': 0}, {'num_groups': None, 'group_size': 3}],
)
def test_groups_that_do_not_divide_are_told_alike(options):
  messages = _messages('GroupNorm', _X, **options)
  assert messages[0] == messages[1]
  assert 'does not divide the number of channels, 8' in messages[0]


def test_nnx_needs_to_be_told_which_moments():
  for source in (nnx, our_nnx):
    layer = source.BatchNorm(8, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='No `use_running_average` argument'):
      layer(_X)


def test_a_layer_of_separate_examples_takes_no_rows():
  x = jnp.ones((0, 3, 8))
  layer = our_nnx.GroupNorm(8, num_groups=2, rngs=nnx.Rngs(0))
  assert layer(x).shape == x.shape
  layer = our_linen.GroupNorm(num_groups=2)
  variables = layer.init(jax.random.key(0), _X)
  assert layer.apply(variables, x).shape == x.shape
