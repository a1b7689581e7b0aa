"""The linen layers: initializing, collections, and the transforms of linen."""

import functools
import typing

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bn_research import norms
from bn_research.layers import linen as layers


def _draw(shape, seed=0):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(1, 2, shape), jnp.float32)


def _same(ours, flax, tolerance=2e-6):
  assert jax.tree.structure(ours) == jax.tree.structure(flax)
  for a, b in zip(*map(jax.tree.leaves, (ours, flax)), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, tolerance, tolerance)


def _named(name):
  """Our layer, normalizing over the named axis too."""
  if name == 'Norm':
    return layers.Norm(norms.batch_norm(axis_name='devices'))
  options = {'num_groups': 2} if name == 'GroupNorm' else {}
  return getattr(layers, name)(axis_name='devices', **options)


@pytest.mark.parametrize(
  'name',
  ['BatchNorm', 'LayerNorm', 'RMSNorm', 'GroupNorm', 'InstanceNorm', 'Norm'],
)
def test_initializing_needs_no_bound_axis_and_moves_nothing(name):
  call = {'use_running_average': False} if 'Batch' in name else {}
  call = {'use_running_average': False} if name == 'Norm' else call
  variables = _named(name).init(jax.random.key(0), _draw((4, 3, 8)), **call)
  moments = variables.get('batch_stats', {})
  if name in ('BatchNorm', 'Norm'):
    np.testing.assert_array_equal(moments['mean'], np.zeros(8))
    np.testing.assert_array_equal(moments['var'], np.ones(8))
  else:
    assert not moments


@pytest.mark.parametrize(
  'layer',
  [
    layers.BatchNorm(),
    layers.Norm(norms.batch_norm()),
  ],
)
def test_which_moments_is_said_exactly_once(layer):
  x = _draw((4, 8))
  variables = layer.init(jax.random.key(0), x, use_running_average=False)
  with pytest.raises(ValueError, match='must be passed to the constructor or'):
    layer.apply(variables, x)
  with pytest.raises(ValueError, match='passed to the constructor and at call'):
    layer.clone(use_running_average=True).apply(
      variables, x, use_running_average=True
    )


@pytest.mark.parametrize(
  'layer',
  [
    layers.BatchNorm(use_running_average=False),
    layers.Norm(norms.batch_norm(), use_running_average=False),
  ],
)
def test_training_needs_a_mutable_collection_and_evaluation_does_not(layer):
  x = _draw((4, 8))
  variables = layer.init(jax.random.key(0), x)
  with pytest.raises(flax.errors.ModifyScopeVariableError):
    layer.apply(variables, x)
  evaluating = layer.clone(use_running_average=True)
  y, after = evaluating.apply(variables, x, mutable=['batch_stats'])
  assert np.isfinite(y).all()
  _same(after['batch_stats'], variables['batch_stats'], 0)
  evaluating.apply(variables, x)


def test_a_traced_flag_is_refused_as_by_flax():
  x = _draw((4, 8))
  for source in (nn, layers):
    layer = source.BatchNorm()
    variables = layer.init(jax.random.key(0), x, use_running_average=False)
    with pytest.raises(jax.errors.TracerBoolConversionError):
      jax.jit(layer.apply)(variables, x, jnp.asarray(True))


class Block(nn.Module):
  """One step of a scan: carry in, carry out."""

  source: typing.Any
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, _=None):
    norm = self.source.BatchNorm(
      use_running_average=False,
      use_fast_variance=False,
      axis_name=self.axis_name,
    )
    return jnp.sin(self.source.LayerNorm()(norm(x)) + x), None


def _run(transformed, x, initialized=None):
  """Outputs, statistics and gradients of both sources."""
  results = []
  for source in (layers, nn):
    model = transformed(source)
    first = (initialized or transformed)(source)
    variables = jax.jit(first.init)(jax.random.key(0), x)
    stats = variables['batch_stats']

    def loss(params, model=model, stats=stats):
      (y, _), moved = model.apply(
        {'params': params, 'batch_stats': stats}, x, mutable=['batch_stats']
      )
      return jnp.sum(y**2), moved

    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, moved), grads = differentiate(variables['params'])
    results.append((variables, value, moved, grads))
  return results


def test_scan_over_layers_with_statistics_of_their_own():
  scanned = nn.scan(
    Block,
    {'params': 0, 'batch_stats': 0},
    split_rngs={'params': True},
    length=3,
  )
  ours, flax = _run(scanned, _draw((6, 8)))
  _same(ours, flax, 2e-4)


def test_scan_over_time_with_statistics_carried_along():
  scanned = nn.scan(
    Block,
    variable_broadcast='params',
    variable_carry='batch_stats',
    split_rngs={'params': False},
    length=3,
  )
  # What a scan carries must be there before it, so the block is initialized.
  ours, flax = _run(scanned, _draw((6, 8)), initialized=Block)
  _same(ours, flax, 2e-4)


def test_vmap_over_models():
  mapped = nn.vmap(
    Block,
    {'params': 0, 'batch_stats': 0},
    split_rngs={'params': True},
  )
  ours, flax = _run(mapped, _draw((3, 6, 8)))
  _same(ours, flax, 2e-4)


def test_vmap_over_examples_with_one_set_of_statistics():
  mapped = nn.vmap(
    Block,
    {'params': None, 'batch_stats': None},
    split_rngs={'params': False},
    axis_name='batch',
  )
  ours, flax = _run(lambda s: mapped(s, axis_name='batch'), _draw((6, 1, 8)))
  _same(ours, flax, 2e-4)


def test_remat():
  ours, flax = _run(lambda source: nn.remat(Block)(source), _draw((6, 8)))
  plain, _ = _run(Block, _draw((6, 8)))
  _same(ours[1:], flax[1:], 2e-4)
  _same(ours[1], plain[1])


def test_groups_of_devices_under_pmap():
  x = _draw((4, 6, 8))
  results = []
  for source in (layers, nn):
    layer = source.BatchNorm(
      use_running_average=False,
      axis_name='devices',
      axis_index_groups=[[0, 1], [2, 3]],
      use_fast_variance=False,
    )
    variables = layer.init(jax.random.key(0), x[0])
    call = functools.partial(layer.apply, variables, mutable=['batch_stats'])
    results.append(jax.pmap(call, axis_name='devices')(x))
  _same(*results, 1e-5)


def test_partitioned_parameters_keep_their_box():
  init = nn.with_partitioning(nn.initializers.ones, ('model',))
  layer = layers.LayerNorm(scale_init=init)
  x = _draw((4, 8))
  variables = layer.init(jax.random.key(0), x)
  assert variables['params']['scale'].names == ('model',)
  assert np.isfinite(layer.apply(variables, x)).all()
