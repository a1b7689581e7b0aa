"""The formula of collectives, beside the compiled program."""

import functools
import re

import jax
import numpy as np
import pytest
from flax import nnx

from bn_research import data, experiment, models, norms, optim
from bn_research.layers import nnx as layers
from bn_research.training import (
  configuration,
  gradients,
  losses,
  mesh,
  state,
  step,
)
from bn_research.training.costs import collectives
from tests.quick import some

BATCH, SHAPE = 16, (8, 8, 3)
COLLECTIVE = re.compile(
  r'= (.*) (all-reduce|all-gather|all-to-all|reduce-scatter|'
  r'collective-permute)(-start)?\('
)
ARRAY = re.compile(r'(f32|s32|u32|pred)\[([\d,]*)\]')

MLP = {'name': 'mlp', 'widths': (12, 7)}
NETWORKS = {
  'mlp, batch norm': {**MLP, 'norm': {'name': 'batch_norm'}},
  'mlp, layer norm': {**MLP, 'norm': {'name': 'layer_norm'}},
  'mlp, none': {**MLP, 'norm': {'name': 'none'}},
  'mlp, IterNorm': {**MLP, 'norm': {'name': 'iter_norm'}},
  'mlp, renorm': {**MLP, 'norm': {'name': 'batch_renorm'}},
  'mlp, mean only': {**MLP, 'norm': {'name': 'mean_only_batch_norm'}},
  'mlp, EvoNorm-B0': {**MLP, 'norm': {'name': 'evonorm_b0'}},
  'mlp, biases in the dense layers': {
    **MLP,
    'dense_bias': True,
    'norm': {'name': 'batch_norm'},
  },
  'patch_cnn, batch norm without scale': {
    'name': 'patch_cnn',
    'widths': (4,),
    'norm': {'name': 'batch_norm'},
  },
  'resnet, batch norm': {
    'name': 'resnet',
    'depth': 8,
    'width': 2,
    'norm': {'name': 'batch_norm'},
  },
}


def parts_of(model, num_devices):
  config = configuration.resolve(
    experiment.config(
      {
        'model': model,
        'batch_size': BATCH,
        'num_devices': num_devices,
        'optimizer.momentum': 0.9,
      }
    )
  )
  optimizer = optim.create(config['optimizer'], 10)
  create = state.creator(config, SHAPE, 10, optimizer)
  graphdef, start = jax.eval_shape(create, jax.random.key(0))
  return config, optimizer, graphdef, start


def compiled(model, num_devices, **parts):
  """Returns the count, and bytes of gathers and sums, of the compiled step."""
  _, optimizer, graphdef, start = parts_of(model, num_devices)
  devices = mesh.create(num_devices, BATCH)
  whole = mesh.replicated(devices)

  def like(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

  images = jax.ShapeDtypeStruct((50, *SHAPE), np.uint8)
  labels, batch = (jax.ShapeDtypeStruct((n,), np.int32) for n in (50, BATCH))
  function = functools.partial(
    step.next_step,
    graphdef=graphdef,
    optimizer=optimizer,
    to_input=data.to_input,
    **parts,
  )
  given = (start, step.Examples(images, labels), batch)
  with jax.set_mesh(devices):
    jitted = jax.jit(function, out_shardings=whole)
    text = jitted.lower(*jax.tree.map(like, given)).compile().as_text()
  return read(text)


def read(text):
  """Returns the count, and bytes of gathers and sums, of a program."""
  found = {'all-gather': 0, 'all-reduce': 0}
  matches = COLLECTIVE.findall(text)
  for arrays, kind, _ in matches:
    for _, sizes in ARRAY.findall(arrays):
      found[kind] += 4 * np.prod([int(n) for n in sizes.split(',') if n])
  return len(matches), found['all-gather'], found['all-reduce']


def counted(model, num_devices):
  _, _, graphdef, start = parts_of(model, num_devices)

  def loss(params, rest, x, labels):
    network = nnx.merge(graphdef, params, rest, copy=True)
    return losses.losses(network(x, train=True), labels).mean()

  x = jax.ShapeDtypeStruct((BATCH, *SHAPE), np.float32)
  labels = jax.ShapeDtypeStruct((BATCH,), np.int32)
  network = nnx.eval_shape(
    lambda: models.create(model, SHAPE, 10, jax.random.key(0))
  )
  with jax.sharding.use_abstract_mesh(collectives.mesh_of(num_devices)):
    return collectives.of_step(
      loss, network, start.params, start.rest, x, labels
    )


def test_a_loop_has_the_collectives_of_each_turn():
  model = NETWORKS['mlp, batch norm']
  _, _, graphdef, start = parts_of(model, 2)

  def loss(params, rest, x):
    def turn(carry, x):
      network = nnx.merge(graphdef, params, rest, copy=True)
      return carry + network(x, train=True).sum(), None

    return jax.lax.scan(turn, 0.0, x)[0]

  x = jax.ShapeDtypeStruct((3, BATCH, *SHAPE), np.float32)
  network = nnx.merge(graphdef, start.params, start.rest)
  with jax.sharding.use_abstract_mesh(collectives.mesh_of(2)):
    found = collectives.of_step(loss, network, start.params, start.rest, x)
  one = counted(model, 2)
  # A turn has two norms, each with a collective forward and one backward.
  assert (one.number, found.number) == (2 * 2 + 1, 3 * 2 * 2 + 1)
  assert found.gathered == 3 * one.gathered


class DenseNorm(nnx.Module):
  """A dense layer and a batch norm."""

  def __init__(self, **options):
    rngs = nnx.Rngs(0)
    self.dense = nnx.Linear(3, 5, use_bias=False, rngs=rngs)
    self.norm = layers.Norm(norms.batch_norm(), 5, rngs=rngs, **options)

  def __call__(self, x):
    return self.norm(self.dense(x), use_running_average=False)


@pytest.mark.parametrize('use_scale', [True, False])
@pytest.mark.parametrize('use_bias', [True, False])
def test_a_norm_without_scale_or_bias_has_sums_of_its_own(use_scale, use_bias):
  model = DenseNorm(use_scale=use_scale, use_bias=use_bias)
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)

  def loss(params, x):
    network = nnx.merge(graphdef, params, rest, copy=True)
    return (network(x) ** 3).mean()

  devices = mesh.create(2, BATCH)
  whole = mesh.replicated(devices)
  rows = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec('data'))
  x = jax.ShapeDtypeStruct((BATCH, 3), np.float32)
  with jax.set_mesh(devices):
    jitted = jax.jit(
      jax.value_and_grad(loss),
      in_shardings=(whole, rows),
      out_shardings=whole,
    )
    text = jitted.lower(params, x).compile().as_text()
  with jax.sharding.use_abstract_mesh(collectives.mesh_of(2)):
    found = collectives.of_step(loss, model, params, x)
  number, *sizes = read(text)
  assert [found.gathered, found.reduced] == sizes
  assert number - 1 <= found.number <= number


NETWORKS['resnet, remat'] = {**NETWORKS['resnet, batch norm'], 'remat': True}

QUICK = [('mlp, batch norm', 8), ('mlp, IterNorm', 2)]
ROWS = [(name, n) for name in NETWORKS for n in (2, 4, 8)]


@pytest.mark.parametrize(('name', 'num_devices'), some(QUICK, ROWS))
def test_the_formula_is_that_of_the_compiled_step(name, num_devices):
  expected = compiled(NETWORKS[name], num_devices)
  found = counted(NETWORKS[name], num_devices)
  assert (found.gathered, found.reduced) == expected[1:]
  # XLA may divide the last sum in two.
  assert expected[0] - 1 <= found.number <= expected[0]


@pytest.mark.parametrize(
  ('unroll', 'factor'),
  # The body of a loop stands only once in the text of a program.
  [(True, 1), pytest.param(False, 2, marks=pytest.mark.slow)],
)
def test_each_micro_batch_has_its_collectives(unroll, factor):
  model = NETWORKS['mlp, batch norm']
  rule = gradients.Rule(microbatches=2, unroll=unroll)
  number, *sizes = compiled(model, 2, rule=rule)
  found = counted(model, 2).times(2)
  assert found[1:] == tuple(factor * size for size in sizes)
  # XLA may join the last sums of unrolled micro-batches.
  assert found.number - 1 <= factor * number <= found.number


def test_one_device_has_no_collectives():
  assert counted(NETWORKS['mlp, batch norm'], 1) == (0, 0, 0)
