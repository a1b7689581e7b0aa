"""Constructors, calls, attributes and variables are those of Flax."""

import inspect
import typing

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from bn_research.layers import linen as our_linen
from bn_research.layers import nnx as our_nnx

# Arguments whose meaning is known here. One that Flax adds would be taken and
# have no effect, which no test of values can see.
_KNOWN = {
  *('num_features', 'use_running_average', 'axis', 'momentum', 'epsilon'),
  *('dtype', 'param_dtype', 'use_bias', 'use_scale', 'bias_init', 'scale_init'),
  *('axis_name', 'axis_index_groups', 'reduction_axes', 'feature_axes'),
  *('num_groups', 'group_size', 'use_fast_variance', 'promote_dtype', 'rngs'),
  *('force_float32_reductions', 'bias_metadata', 'scale_metadata'),
  *('self', 'parent', 'name'),
}


def _parameters(function):
  return [
    (p.name, p.kind, p.default)
    for p in inspect.signature(function).parameters.values()
  ]


def test_constructors_are_those_of_flax(family, name):
  ours, flax = getattr(family.ours, name), getattr(family.flax, name)
  assert _parameters(ours.__init__) == _parameters(flax.__init__)
  assert {name for name, *_ in _parameters(flax.__init__)} <= _KNOWN


def test_calls_are_those_of_flax(family, name):
  ours, flax = getattr(family.ours, name), getattr(family.flax, name)
  assert _parameters(ours.__call__) == _parameters(flax.__call__)


def test_classes_are_named_and_found_as_those_of_flax(family, name):
  ours, flax = getattr(family.ours, name), getattr(family.flax, name)
  assert ours.__name__ == flax.__name__
  assert issubclass(ours, flax)


def test_nnx_attributes_are_those_of_flax(name):
  ours = getattr(our_nnx, name)(32, rngs=nnx.Rngs(0))
  flax = getattr(nnx, name)(32, rngs=nnx.Rngs(0))
  private = {'_pytree__state', '_pytree__nodes'}
  assert vars(ours).keys() == vars(flax).keys()
  for key in vars(flax).keys() - private:
    if not isinstance(getattr(flax, key), nnx.Variable):
      assert getattr(ours, key) == getattr(flax, key)


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'use_scale': False},
    {'param_dtype': jnp.bfloat16},
    {'scale_init': jax.nn.initializers.normal()},
  ],
  ids=lambda options: (
    ','.join(options) if isinstance(options, dict) else options
  ),
)
def test_variables_are_those_of_flax(pair, name, options):
  pair(name, jnp.ones((2, 3, 32)), **options)  # compares the trees


def test_bias_draws_first_where_there_is_no_scale(pair):
  normal = jax.nn.initializers.normal()
  for name in ('BatchNorm', 'LayerNorm', 'GroupNorm', 'InstanceNorm'):
    x = jnp.ones((2, 3, 32))
    pair(name, x, scale_init=normal, bias_init=normal)
    pair(name, x, use_scale=False, bias_init=normal)
    pair(name, x, use_bias=False, scale_init=normal)


def test_nnx_layers_draw_as_many_keys(name):
  for use_scale in (True, False):
    ours, flax = nnx.Rngs(0), nnx.Rngs(0)
    getattr(our_nnx, name)(32, use_scale=use_scale, rngs=ours)
    getattr(nnx, name)(32, use_scale=use_scale, rngs=flax)
    assert ours.params.count[...] == flax.params.count[...]


def test_nnx_metadata_reaches_the_parameters():
  layer = our_nnx.LayerNorm(
    4,
    rngs=nnx.Rngs(0),
    scale_metadata={'sharding_hint': 'model'},
    bias_metadata={'sharding_hint': None},
  )
  assert layer.scale.sharding_hint == 'model'
  assert layer.bias.sharding_hint is None


def test_linen_names_layers_by_their_class():
  class Net(linen.Module):
    layers: typing.Any

    @linen.compact
    def __call__(self, x):
      x = self.layers.BatchNorm(use_running_average=False)(x)
      for name in ('LayerNorm', 'RMSNorm', 'GroupNorm', 'InstanceNorm'):
        x = getattr(self.layers, name)()(x)
      return self.layers.LayerNorm()(x)

  ours, flax = (
    Net(source).lazy_init(
      jax.random.key(0), jax.ShapeDtypeStruct((2, 3, 32), jnp.float32)
    )
    for source in (our_linen, linen)
  )
  assert jax.tree.structure(ours) == jax.tree.structure(flax)
  assert 'LayerNorm_1' in ours['params']
