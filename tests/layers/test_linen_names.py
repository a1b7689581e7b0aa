"""Names of linen layers that differ before and after a change."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bn_research import norms
from bn_research.layers import linen as layers
from bn_research.layers.linen import surgery

X = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32) + 3
OLD = functools.partial(nn.BatchNorm, use_running_average=False)
NEW = functools.partial(
  layers.Norm, norms.batch_norm(), use_running_average=False
)


class Net(nn.Module):
  """A dense layer, a norm, and a head."""

  norm: typing.Any
  name_of_norm: str | None = None
  head: str | None = 'head'

  @nn.compact
  def __call__(self, x):
    x = self.norm(name=self.name_of_norm)(nn.Dense(4)(x))
    return x if self.head is None else nn.Dense(2, name=self.head)(x)


def start(model):
  return model.init(jax.random.key(0), X)


def trained(model):
  return jax.tree.map(lambda leaf: leaf + 2, start(model))


@pytest.mark.parametrize(
  'norm',
  [
    NEW,
    functools.partial(layers.Norm, norms.layer_norm()),
    functools.partial(layers.Norm, norms.dynamic_tanh(), use_bias=False),
    functools.partial(NEW, use_scale=False, use_bias=False),
    functools.partial(
      layers.Norm,
      norms.Chain((norms.batch_norm(), norms.layer_norm())),
      use_running_average=False,
    ),
  ],
  ids=['batch_norm', 'layer_norm', 'learned', 'statistics', 'chain'],
)
def test_automatic_names_of_another_class_are_told(norm):
  old, new = trained(Net(OLD)), start(Net(norm))
  with pytest.raises(ValueError, match=r"Norm_0',\).*\('BatchNorm_0',\)") as e:
    surgery.carry(old, new)
  assert 'Dense' not in str(e.value)
  assert '\n' not in str(e.value)
  for head in ('head', None):
    named = start(Net(norm, 'norm', head))
    surgery.carry(trained(Net(OLD, 'norm')), named)


def test_a_layer_may_start_afresh_if_no_old_layer_is_left_over():
  old, new = trained(Net(OLD, 'norm')), start(Net(NEW, 'norm', 'classifier'))
  with pytest.raises(ValueError, match=r"\('classifier',\).*\('head',\)"):
    surgery.carry(old, new)
  del old['params']['head']
  carried = surgery.carry(old, new)
  for name, source in (('norm', old), ('classifier', new)):
    jax.tree.map(
      np.testing.assert_array_equal,
      carried['params'][name],
      source['params'][name],
    )


def test_parts_of_a_layer_are_no_layers():
  """Learned arrays are new, and a checkpoint has dicts for statistics."""
  interval = norms.batch_whitening('zca', every=2)
  old = trained(Net(functools.partial(NEW.func, interval, False), 'norm', None))
  old['batch_stats']['norm']['pair'] = old['batch_stats']['norm'][
    'pair'
  ]._asdict()
  mixture = norms.Mixture((norms.layer_norm(), norms.dynamic_tanh()))
  new = start(Net(functools.partial(layers.Norm, mixture), 'norm'))
  carried = surgery.carry(old, new)
  np.testing.assert_array_equal(carried['params']['norm']['scale'], 3)
  jnp.asarray(carried['params']['norm']['learned']['logits'])


def test_many_names_are_cut():
  layers_of = lambda name: {
    'params': {f'{name}_{k}': {'scale': jnp.ones(2)} for k in range(20)}
  }
  with pytest.raises(ValueError, match='and 12 more are only in the old'):
    surgery.carry(layers_of('BatchNorm'), layers_of('Norm'))
