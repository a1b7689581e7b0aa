"""Networks for tests: made without a compiler, with random parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bn_research import models


def fast_jit(function):
  """Compiles without most optimizations, which take most of the time."""
  options = {'xla_backend_optimization_level': 0}
  return jax.jit(function, compiler_options=options)


def abstract(shape=(32, 32, 3), num_classes=10, **config):
  """Returns a network of a config, with shapes in place of arrays."""
  config = {'norm': {'name': 'batch_norm'}} | config
  return nnx.eval_shape(
    lambda: models.create(config, shape, num_classes, jax.random.key(0))
  )


def num_parameters(model):
  return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def filled(model, seed=0):
  """Fills an abstract network: parameters at random, and zeros elsewhere.

  With random scales and biases, a norm at a wrong place changes the result.
  """
  rng = np.random.default_rng(seed)
  normal = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
  zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
  params, rest = nnx.state(model, nnx.Param, ...)
  nnx.update(model, jax.tree.map(normal, params), jax.tree.map(zeros, rest))
  return model


def shapes_of(model, shape=(32, 32, 3), **options):
  """Returns the shape and the type of each tapped value, and of the logits."""
  found = {}

  def note(name, value):
    assert name not in found
    found[name] = value.shape[1:], value.dtype
    return value

  graphdef, state = nnx.split(model)
  found['logits'] = jax.eval_shape(
    lambda state, x: nnx.merge(graphdef, state, copy=True)(
      x, train=True, tap=note, **options
    ),
    state,
    jax.ShapeDtypeStruct((2, *shape), jnp.float32),
  )
  return found
