"""What `reestimate` takes for batches: never a row for a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import norms
from bn_research.layers import nnx as layers
from bn_research.layers.nnx import reestimation

RANDOM = np.random.default_rng(0)
DATA = [
  jnp.asarray(RANDOM.standard_normal((rows, 4)) * 2 + rows, 'f4')
  for rows in (8, 8, 4)
]


def new():
  rngs = nnx.Rngs(0)
  return nnx.Sequential(
    layers.BatchNorm(4, rngs=rngs),
    nnx.Linear(4, 4, rngs=rngs),
    jnp.tanh,
    layers.Norm(norms.batch_norm(), 4, rngs=rngs),
  )


def call(model, x):
  return model(x)


def measured(batches, **options):
  model = new()
  reestimation.reestimate(model, batches, call, **options)
  return model.layers[3].statistics.var[...]


SEQUENCES = {
  'list': lambda: DATA,
  'tuple': lambda: tuple(DATA),
  'generator': lambda: (x for x in DATA),
  'array': lambda: jnp.stack(DATA[:2]),
  'pairs': lambda: [(x, x) for x in DATA],
  'nothing': lambda: [],
}


@pytest.mark.parametrize('in_order', [True, False])
@pytest.mark.parametrize('name', SEQUENCES)
def test_batches_without_a_function_are_refused(name, in_order):
  model = new()
  before = nnx.clone(model)
  with pytest.raises(ValueError, match=r'^batches is a .*lambda: batches') as e:
    reestimation.reestimate(model, SEQUENCES[name](), call, in_order=in_order)
  assert '\n' not in str(e.value)
  jax.tree.map(
    np.testing.assert_array_equal, nnx.state(model), nnx.state(before)
  )


def test_a_list_a_generator_and_stacks_inside_jit_measure_the_same():
  def inside(in_order):
    graphdef, state = nnx.split(new())

    @jax.jit
    def measure(state, *stacks):
      model = nnx.merge(graphdef, state)
      reestimation.reestimate(model, stacks, call, in_order=in_order)
      return nnx.state(model)

    stacks = jnp.stack(DATA[:2]), DATA[2][None]
    model = nnx.merge(graphdef, measure(state, *stacks))
    return model.layers[3].statistics.var[...]

  for in_order in (True, False):
    expected = measured(lambda: DATA, in_order=in_order)
    found = measured(lambda: (x for x in DATA), in_order=in_order)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(inside(in_order), expected, rtol=1e-5)


def test_an_iterator_for_two_passes_is_refused():
  """The first pass would take a batch away."""
  batches = iter(DATA)
  model = nnx.Sequential(layers.BatchNorm(4, rngs=nnx.Rngs(0)))
  with pytest.raises(ValueError, match='same iterator for two passes'):
    reestimation.reestimate(model, lambda: batches, call)
  np.testing.assert_array_equal(model.layers[0].mean[...], 0)
  batches = iter(DATA)
  reestimation.reestimate(model, lambda: batches, call, in_order=False)
  mean = np.concatenate(DATA).mean(0)
  np.testing.assert_allclose(model.layers[0].mean[...], mean, rtol=1e-5)


def test_an_array_in_place_of_batches_is_refused():
  with pytest.raises(ValueError, match=r'array of shape \(8, 4\).*\[x\]'):
    measured(lambda: DATA[0])
