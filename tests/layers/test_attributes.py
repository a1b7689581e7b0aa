"""Attributes of layers that are assigned, and numbers that cannot work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import norms
from bn_research.layers import linen as linen_layers
from bn_research.layers import nnx as layers

X = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32) + 3


def test_a_number_may_become_an_array_and_a_number_again():
  layer = layers.BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(0))
  for momentum in (jnp.float32(0.5), 0.5, np.float32(0.5)):
    layer.momentum = momentum
    layer.mean.set_value(jnp.zeros(4))
    layer(X)
    np.testing.assert_allclose(layer.mean[...], X.mean(0) / 2, rtol=1e-6)
  layer.epsilon = jnp.float32(2.0)
  expected = (X - X.mean(0)) / np.sqrt(X.var(0) + 2)
  np.testing.assert_allclose(layer(X), expected, atol=1e-5)


def test_an_assigned_array_is_a_leaf_and_does_not_compile_anew():
  layer = layers.Norm(norms.batch_norm(0.9), 4, rngs=nnx.Rngs(0))
  compiled = []

  @nnx.jit
  def step(layer):
    compiled.append(1)
    return layer(X)

  for momentum in (0.0, 0.5):
    layer.normalization = norms.Normalization(
      norms.Batch(), norms.Standardize(), norms.Ema(jnp.float32(momentum))
    )
    step(layer)
  assert len(compiled) == 1
  np.testing.assert_allclose(layer.statistics.mean[...], X.mean(0), rtol=1e-6)
  layer.normalization = norms.batch_norm(0.5)
  step(layer)
  assert jax.tree.leaves(layer.normalization) == []


def test_layers_per_example_take_arrays():
  for layer in (
    layers.LayerNorm(4, rngs=nnx.Rngs(0)),
    layers.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0)),
  ):
    layer.epsilon = jnp.float32(0.25)
    expected = type(layer).__call__(layer, X)
    layer.epsilon = 0.25
    np.testing.assert_allclose(layer(X), expected, atol=1e-6)


@pytest.mark.parametrize('name', ['momentum', 'epsilon'])
def test_a_schedule_needs_a_layer_that_counts(name):
  """With the variables of Flax, a schedule would be read at 0 for ever."""
  options = {name: lambda steps: 0.5 + 0 * steps}
  for make in (
    lambda: layers.BatchNorm(4, **options, rngs=nnx.Rngs(0)),
    lambda: linen_layers.BatchNorm(**options, use_running_average=True).init(
      jax.random.key(0), X
    ),
  ):
    with pytest.raises(ValueError, match=f'{name}=.* is a schedule.*Norm'):
      make()


def test_arrays_of_a_normalization_are_restored():
  layer = layers.Norm(
    norms.batch_norm(jnp.float32(0.5), jnp.float32(2.0)), 4, rngs=nnx.Rngs(0)
  )
  state = jax.tree.map(lambda leaf: leaf / 2, nnx.state(layer))
  nnx.update(layer, state)
  assert layer.normalization.population.momentum == 0.25
  assert layer.normalization.map.epsilon == 1.0
  layer.statistics.mean.set_value(jnp.zeros(4))
  layer(X)
  assert layer.statistics.steps[...] == 1
