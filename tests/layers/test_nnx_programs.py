"""The nnx layers inside the transforms of nnx and of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import norms
from bn_research.layers import nnx as layers


def _draw(shape, seed=0):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(1, 2, shape), jnp.float32)


class Net(nnx.Module):
  def __init__(self, source, rngs, **options):
    self.dense = nnx.Linear(4, 8, rngs=rngs)
    self.norm = source.BatchNorm(8, rngs=rngs, **options)
    self.out = source.LayerNorm(8, rngs=rngs)

  def __call__(self, x):
    return self.out(jnp.tanh(self.norm(self.dense(x))))


def _same(ours, flax, tolerance=2e-6):
  for a, b in zip(*map(jax.tree.leaves, (ours, flax)), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, tolerance, tolerance)


@nnx.jit
def _call(net, x):
  return net(x)


def _statistics(net):
  """A copy of them; `nnx.state` shares what later calls move."""
  return nnx.to_pure_dict(nnx.clone(nnx.state(net, nnx.BatchStat)))


def _both(**options):
  """The same net with our layers and with Flax's."""
  options['use_fast_variance'] = False
  return [Net(s, nnx.Rngs(0), **options) for s in (layers, nnx)]


def test_jit():
  nets, x = _both(), _draw((6, 4))
  for _ in range(3):
    outputs = [_call(net, x) for net in nets]
  _same(*outputs)
  _same(*map(nnx.state, nets))


def test_train_eval_and_view():
  nets, x = _both(), _draw((6, 4))
  for net in nets:
    _call(net, x)
    net.eval()
  before = _statistics(nets[0])
  _same(*(_call(net, x) for net in nets))
  _same(_statistics(nets[0]), before, 0)
  views = [nnx.view(net, use_running_average=False) for net in nets]
  _same(*(_call(view, x) for view in views))
  _same(*map(nnx.state, nets))
  assert np.any(nets[0].norm.mean[...] != before['norm']['mean'])


def test_split_and_merge_inside_grad():
  nets, x = _both(), _draw((6, 4))

  def run(net):
    graph, parameters, rest = nnx.split(net, nnx.Param, ...)

    @jax.jit
    def step(parameters, rest, x):
      def loss(parameters):
        model = nnx.merge(graph, parameters, rest, copy=True)
        value = jnp.mean(jnp.sin(model(x)))
        return value, nnx.state(model, nnx.BatchStat)

      return jax.grad(loss, has_aux=True)(parameters)

    return step(parameters, rest, x)

  _same(*map(run, nets))


def test_nnx_grad_moves_the_statistics_once():
  nets, x = _both(), _draw((6, 4))

  def step(net, x):
    return nnx.grad(lambda net: jnp.mean(jnp.sin(net(x))))(net)

  _same(*(nnx.jit(step)(net, x) for net in nets))
  _same(*map(nnx.state, nets))


def test_vmap_with_an_axis_name_is_the_whole_batch():
  nets, x = _both(axis_name='batch'), _draw((6, 4))
  whole = Net(layers, nnx.Rngs(0))
  axes = nnx.StateAxes({...: None})

  def run(net, x):
    mapped = nnx.vmap(
      lambda net, row: net(row), in_axes=(axes, 0), axis_name='batch'
    )
    return nnx.jit(mapped)(net, x)

  _same(*(run(net, x[:, None]) for net in nets))
  _same(run(nets[0], x[:, None])[:, 0], whole(x), 2e-5)


def test_vmap_over_models():
  x = _draw((6, 4))
  keys = jax.random.split(jax.random.key(0), 3)

  @nnx.vmap(in_axes=0, out_axes=0)
  def create(key):
    return Net(layers, nnx.Rngs(key))

  stacked = nnx.jit(create)(keys)
  mapped = nnx.jit(nnx.vmap(lambda net, x: net(x), in_axes=(0, None)))
  y = mapped(stacked, x)
  for i, key in enumerate(keys):
    net = Net(layers, nnx.Rngs(key))
    _same(y[i], _call(net, x), 2e-5)
    _same(jax.tree.map(lambda a, i=i: a[i], nnx.state(stacked)), nnx.state(net))


def test_scan_over_layers():
  x = _draw((6, 8))

  @nnx.vmap(in_axes=0, out_axes=0)
  def create(key):
    return layers.BatchNorm(8, rngs=nnx.Rngs(key))

  stacked = create(jax.random.split(jax.random.key(0), 3))

  @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
  def run(layer, x):
    return jnp.sin(layer(x))

  expected = x
  for _ in range(3):
    expected = jnp.sin(layers.BatchNorm(8, rngs=nnx.Rngs(0))(expected))
  _same(run(stacked, x), expected, 2e-5)
  assert stacked.mean.shape == (3, 8)


def test_remat_changes_nothing():
  x = _draw((6, 4))

  def run(call):
    net = Net(layers, nnx.Rngs(0))
    loss = lambda net, x: jnp.sum(jnp.sin(call(net, x)))
    return nnx.jit(nnx.grad(loss))(net, x), nnx.state(net)

  plain = lambda net, x: net(x)
  _same(run(nnx.remat(plain)), run(plain))


@pytest.mark.parametrize(
  'make',
  [
    lambda: layers.BatchNorm(8, rngs=nnx.Rngs(0)),
    lambda: layers.GroupNorm(8, 2, rngs=nnx.Rngs(0)),
    lambda: layers.Norm(norms.batch_norm(), 8, rngs=nnx.Rngs(0)),
    lambda: layers.Norm(norms.layer_norm(), 8, rngs=nnx.Rngs(0)),
  ],
)
def test_eval_shape(make):
  abstract = nnx.eval_shape(make)
  leaves = jax.tree.leaves(nnx.state(abstract))
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
  x = jax.ShapeDtypeStruct((4, 3, 8), jnp.float32)
  y = nnx.eval_shape(lambda layer, x: layer(x), abstract, x)
  assert y.shape == x.shape


def test_bridge_to_linen():
  x = _draw((6, 8))
  pair = [
    nnx.bridge.to_linen(source.BatchNorm, 8, use_fast_variance=False)
    for source in (layers, nnx)
  ]
  variables = [m.init(jax.random.key(0), x) for m in pair]
  _same(*variables)
  outputs = [
    m.apply(v, x, mutable=['batch_stats'])
    for m, v in zip(pair, variables, strict=True)
  ]
  _same(*outputs)


def test_variables_that_are_mutable_in_place():
  x = _draw((6, 8))
  plain = layers.BatchNorm(8, rngs=nnx.Rngs(0))
  with nnx.var_defaults(ref=True):
    layer = layers.BatchNorm(8, rngs=nnx.Rngs(0))
    y = jax.jit(lambda layer, x: layer(x))(layer, x)
    mean = layer.mean[...]
  _same(y, plain(x))
  _same(mean, plain.mean[...])
