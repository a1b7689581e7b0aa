"""Bytes that a layer keeps from the forward pass for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import norms
from bn_research.layers import linen as our_linen
from bn_research.layers import nnx as our_nnx
from tests.quick import some

SHAPE = (16, 8, 8, 32)
# Statistics and parameters, in float32.
FEW = 16
RESULTS = (None, 'bfloat16')


def _kept(apply, variables, x):
  """Bytes of what the backward pass needs, and the type of the result."""
  y, pullback = jax.vjp(lambda v, x: apply(v, x)[0], variables, x)
  arrays = {id(leaf): leaf for leaf in jax.tree.leaves(pullback)}
  return sum(leaf.nbytes for leaf in arrays.values()), y.dtype


@pytest.mark.parametrize('dtype', RESULTS)
@pytest.mark.parametrize(
  'x_type', ['bfloat16', pytest.param('float32', marks=pytest.mark.slow)]
)
def test_x_is_kept_in_its_own_type(family, train, name, x_type, dtype):
  """Whatever the type of the result; one array, and the statistics."""
  x = jnp.asarray(np.random.default_rng(0).normal(1, 2, SHAPE), x_type)
  options = {'dtype': dtype and jnp.dtype(dtype)}
  apply, variables = family.make(family.ours, name, 32, x, **options)
  call = lambda v, x: apply(v, x, **train(name))
  actual, result = _kept(call, variables, x)
  assert result == (dtype or 'float32')
  # LayerNorm and RMSNorm have moments for each position.
  by_position = name in ('LayerNorm', 'RMSNorm')
  sets = x.size // 32 if by_position else 16 * 32
  assert x.nbytes <= actual <= x.nbytes + FEW * 4 * sets


MAPS = {
  'centre': norms.mean_only_batch_norm(),
  'scale': norms.power_norm(),
  'whiten': norms.batch_whitening('zca', epsilon=1e-3),
  'refined': norms.batch_whitening('zca', epsilon=1e-3, refinements=1),
  'mixture': norms.Mixture((norms.batch_norm(), norms.power_norm())),
}


@pytest.mark.parametrize('dtype', some(['bfloat16'], RESULTS))
@pytest.mark.parametrize('name', some(['scale', 'whiten'], MAPS))
def test_so_it_is_in_a_norm(family, name, dtype):
  x = jnp.asarray(np.random.default_rng(0).normal(1, 2, SHAPE), 'bfloat16')
  apply, variables = _norm(family, MAPS[name], dtype)
  actual, result = _kept(apply, variables, x)
  assert result == (dtype or 'float32')
  # Matrices for whitening, 32 times a feature's worth.
  assert x.nbytes <= actual <= x.nbytes + FEW * 4 * 32 * 32


def _norm(family, norm, dtype):
  if family.flax is nnx:
    module = our_nnx.Norm(norm, 32, dtype=dtype, rngs=nnx.Rngs(0))
    graph, variables = nnx.split(module)
    call = lambda v, x: (nnx.merge(graph, v, copy=True)(x), None)
    return jax.jit(call), variables
  module = our_linen.Norm(norm, use_running_average=False, dtype=dtype)
  variables = module.init(jax.random.key(0), jnp.ones((2, 32)))
  call = lambda v, x: module.apply(v, x, mutable=['batch_stats'])
  return jax.jit(call), variables
