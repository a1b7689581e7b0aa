"""The way of x through a layer: short, built once, and open to assignment."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bn_research
from bn_research import norms
from bn_research.layers import linen as linen_layers
from bn_research.layers import nnx as layers
from tests.quick import some

OURS = str(pathlib.Path(bn_research.__file__).parent)


def frames(function):
  """How many Python calls of our own files a call makes."""
  count = 0

  def profile(frame, event, _):
    nonlocal count
    count += event == 'call' and frame.f_code.co_filename.startswith(OURS)

  sys.setprofile(profile)
  try:
    function()
  finally:
    sys.setprofile(None)
  return count


def test_a_training_call_of_batch_norm_makes_few_calls():
  # Momentum and features that no other test has: nothing is known beforehand.
  layer = layers.BatchNorm(7, momentum=0.8125, rngs=nnx.Rngs(0))
  x = jnp.ones((8, 7))
  assert 0 < frames(lambda: layer(x)) <= 60
  assert 0 < frames(lambda: layer(x)) <= 30


def test_what_is_assigned_takes_effect_at_the_next_call():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)) + 2, 'f4')
  layer = layers.BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(0))
  layer(x)
  mean = layer.mean[...]
  layer.momentum = 0.25
  layer(x)
  np.testing.assert_allclose(
    layer.mean[...], 0.25 * mean + 0.75 * x.mean(0), rtol=1e-5
  )
  layer.epsilon = 4.0
  expected = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 4)
  np.testing.assert_allclose(layer(x), expected, atol=1e-5)
  layer.axis = 0
  layer_norm = layers.LayerNorm(4, rngs=nnx.Rngs(0))
  layer_norm.epsilon = 4.0
  spread = jnp.sqrt(x.var(1, keepdims=True) + 4)
  expected = (x - x.mean(1, keepdims=True)) / spread
  np.testing.assert_allclose(layer_norm(x), expected, atol=1e-5)


def test_momentum_and_epsilon_may_be_traced():
  graphdef, state = nnx.split(layers.BatchNorm(4, rngs=nnx.Rngs(0)))
  x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)) + 2, 'f4')

  @jax.jit
  def step(state, momentum, epsilon):
    layer = nnx.merge(graphdef, state, copy=True)
    layer.momentum, layer.epsilon = momentum, epsilon
    return layer(x), layer.mean[...]

  for momentum in (0.5, 0.25):
    y, mean = step(state, momentum, 1.0)
    np.testing.assert_allclose(mean, (1 - momentum) * x.mean(0), rtol=1e-5)
    expected = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@jax.jit
def linen_step(variables, x, momentum):
  layer = linen_layers.BatchNorm(use_running_average=False, momentum=momentum)
  return layer.apply(variables, x, mutable=['batch_stats'])[1]


def test_momentum_of_linen_may_be_traced():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)) + 2, 'f4')
  variables = linen_layers.BatchNorm(use_running_average=False).init(
    jax.random.key(0), x
  )
  moved = linen_step(variables, x, 0.75)
  np.testing.assert_allclose(
    moved['batch_stats']['mean'], 0.25 * x.mean(0), rtol=1e-5
  )


def test_a_norm_with_arrays_is_held_trained_and_split():
  norm = norms.batch_norm(jnp.float32(0.75), jnp.float32(1e-2))
  layer = layers.Norm(norm, 4, rngs=nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), 'f4')
  graphdef, state = nnx.split(layer)
  assert hash(graphdef) == hash(nnx.split(layer)[0])
  copy = nnx.merge(graphdef, state)
  expected = norms.batch_norm(0.75, 1e-2).apply(x, norms.batch_norm().init(4))
  np.testing.assert_allclose(copy(x), expected[0], atol=1e-6)
  nnx.jit(lambda layer, x: layer(x))(layer, x)
  np.testing.assert_allclose(layer.statistics.mean[...], expected[1].mean)


MESHED = {
  'batch_norm': lambda rngs: layers.BatchNorm(8, momentum=0.0, rngs=rngs),
  'norm': lambda rngs: layers.Norm(norms.batch_norm(0.0), 8, rngs=rngs),
  'ghosts': lambda rngs: layers.Norm(
    norms.batch_norm(0.0, group_size=4), 8, rngs=rngs
  ),
  'renorm': lambda rngs: layers.Norm(norms.batch_renorm(0.0), 8, rngs=rngs),
  'cumulative': lambda rngs: layers.Norm(
    norms.Normalization(
      norms.Batch(), norms.Standardize(), norms.Cumulative(), norms.recalled
    ),
    8,
    rngs=rngs,
  ),
  'pooled': lambda rngs: layers.Norm(
    norms.Normalization(norms.Batch(), norms.Standardize(), norms.Pooled()),
    8,
    rngs=rngs,
  ),
  'accumulated': lambda rngs: layers.Norm(
    norms.Normalization(
      norms.Batch(),
      norms.Standardize(),
      norms.Accumulated(1, norms.Ema(0.0)),
    ),
    8,
    rngs=rngs,
  ),
  'interval': lambda rngs: layers.Norm(
    norms.Normalization(
      norms.Batch(),
      norms.Standardize(),
      norms.Interval(1, norms.Ema(0.0)),
      norms.recalled,
    ),
    8,
    rngs=rngs,
  ),
  'whitening': lambda rngs: layers.Norm(
    norms.batch_whitening('zca', momentum=0.0), 8, rngs=rngs
  ),
  'evonorm': lambda rngs: layers.Norm(norms.EvoNormB0(0.0), 8, rngs=rngs),
}


@pytest.mark.parametrize(
  ('spec', 'inside'),
  [
    (P(None, 'm'), True),
    *(
      pytest.param(spec, inside, marks=pytest.mark.slow)
      for spec in (P(None, 'm'), P('d', 'm'), P('d'))
      for inside in (True, False)
    ),
  ],
)
@pytest.mark.parametrize('name', some(list(MESHED)[:3], MESHED))
def test_channels_cut_over_an_explicit_mesh(name, spec, inside):
  if name == 'evonorm':
    spec = P(spec[0], None, *spec[1:])
  mesh = jax.make_mesh((2, 4), ('d', 'm'), axis_types=(AxisType.Explicit,) * 2)
  shape = (16, 3, 8) if name == 'evonorm' else (16, 8)
  x = np.random.default_rng(0).standard_normal(shape).astype('f4') + 3
  outside = MESHED[name](nnx.Rngs(0))
  expected = outside(jnp.asarray(x))
  layer = None if inside else MESHED[name](nnx.Rngs(0))
  with jax.set_mesh(mesh):
    layer = MESHED[name](nnx.Rngs(0)) if inside else layer
    cut = jax.device_put(x, NamedSharding(mesh, spec))
    step = nnx.jit(lambda layer, x: layer(x))
    y = step(layer, cut)
    step(layer, cut)
  np.testing.assert_allclose(y, expected, atol=1e-4)
  mean = layer.mean if name == 'batch_norm' else layer.statistics.mean
  axes = tuple(range(x.ndim - 1))
  np.testing.assert_allclose(mean[...], x.mean(axes), atol=1e-5)


@pytest.mark.parametrize('family', some(['linen'], ['nnx']))
def test_float32_stays_float32_where_float64_is_enabled(family):
  x = np.arange(32, dtype='f4').reshape(8, 4) ** 1.5
  with jax.enable_x64(True):
    for norm in (
      norms.batch_norm(),
      norms.batch_whitening('zca'),
      norms.dynamic_erf(),
      norms.Coloured(norms.batch_whitening('zca')),
    ):
      if family == 'nnx':
        y = layers.Norm(norm, 4, rngs=nnx.Rngs(0))(jnp.asarray(x))
      else:
        layer = linen_layers.Norm(norm, use_running_average=False)
        y, variables = layer.init_with_output(jax.random.key(0), jnp.asarray(x))
        types = {leaf.dtype for leaf in jax.tree.leaves(variables)}
        assert types == {np.dtype('float32')}
      assert y.dtype == jnp.float32


def test_learned_arrays_have_the_type_of_parameters():
  norm = norms.Coloured(norms.layer_norm())
  layer = layers.Norm(norm, 4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  assert layer.learned['colouring'].dtype == jnp.bfloat16
  linen = linen_layers.Norm(norm, param_dtype=jnp.bfloat16)
  variables = linen.init(jax.random.key(0), jnp.ones((2, 4)))
  types = {leaf.dtype for leaf in jax.tree.leaves(variables['params'])}
  assert types == {jnp.dtype('bfloat16')}


def test_half_precision_statistics_recover():
  """A batch whose variance float16 cannot hold is skipped."""
  layer = linen_layers.BatchNorm(
    use_running_average=False,
    momentum=0.5,
    force_float32_reductions=False,
    param_dtype=jnp.float16,
  )
  rng = np.random.default_rng(0)
  huge = jnp.asarray(rng.choice([-6e4, 6e4], (16, 3)), jnp.float16)
  variables = layer.init(jax.random.key(0), huge)
  normal = [rng.standard_normal((16, 3)).astype('f2') for _ in range(3)]
  var = np.ones(3)
  for x in (huge, *normal):
    _, moved = layer.apply(variables, jnp.asarray(x), mutable=['batch_stats'])
    variables = {**variables, **moved}
    if x is not huge:
      var = 0.5 * var + 0.5 * np.asarray(x, 'f8').var(0)
  found = variables['batch_stats']['var']
  np.testing.assert_allclose(np.asarray(found, 'f8'), var, rtol=5e-3)


def test_whole_collections_may_be_averaged_in_a_loop():
  layer = linen_layers.Norm(norms.batch_norm(), use_running_average=False)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4, 3)), 'f4')
  variables = layer.init(jax.random.key(0), x[0])
  mesh = jax.make_mesh((8,), ('i',), axis_types=(AxisType.Auto,))

  def local(statistics, x):
    def body(statistics, _):
      given = {'params': variables['params'], 'batch_stats': statistics}
      _, moved = layer.apply(given, x[0], mutable=['batch_stats'])
      mean = lambda leaf: jax.lax.pmean(leaf, 'i')
      return jax.tree.map(mean, moved['batch_stats']), None

    return jax.lax.scan(body, statistics, None, length=3)[0]

  mapped = jax.shard_map(
    local, mesh=mesh, in_specs=(P(), P('i')), out_specs=P(), check_vma=False
  )
  moved = jax.jit(mapped)(variables['batch_stats'], x)
  np.testing.assert_allclose(moved['mean'], x.mean((0, 1)), atol=1e-5)
  assert moved['steps'] == 3


def test_instance_norm_says_what_flax_says():
  x = jnp.ones((2, 3, 4, 5))
  message = (
    'The channel axes cannot include the leading dimension as this is assumed '
    'to be the batch axis.'
  )
  for axes in (0, -4, (0, 3), (2, -4)):
    with pytest.raises(ValueError, match=message):
      linen_layers.InstanceNorm(feature_axes=axes).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=message):
      layers.InstanceNorm(5, feature_axes=axes, rngs=nnx.Rngs(0))(x)
    with pytest.raises(ValueError, match=message):
      nn.InstanceNorm(feature_axes=axes).init(jax.random.key(0), x)
