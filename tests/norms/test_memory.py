"""Bytes kept from the forward pass for the backward pass, counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms

SHAPE = (64, 8, 8, 32)
# Statistics: mean, deviation and so on, in float32.
FEW = 12


def kept(norm, dtype, masked):
  """Bytes of what the backward pass needs, and of x."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), dtype)
  mask = (x[:, :1, :1, :1] > 0) if masked else None
  state = norm.init(SHAPE[-1])

  def f(x, scale, bias):
    return norm.apply(x, state, scale=scale, bias=bias, mask=mask)[0]

  _, pullback = jax.vjp(f, x, jnp.ones(SHAPE[-1]), jnp.zeros(SHAPE[-1]))
  arrays = {id(leaf): leaf for leaf in jax.tree.leaves(pullback)}
  return sum(leaf.nbytes for leaf in arrays.values()), x.nbytes


NORMS = {
  'batch_norm': norms.batch_norm(),
  'ghosts': norms.batch_norm(group_size=24),
  'stopped': norms.batch_norm(gradient='stopped'),
  'batch_renorm': norms.batch_renorm(),
  'layer_norm': norms.layer_norm(),
  'rms_norm': norms.rms_norm(),
  'instance_norm': norms.instance_norm(),
  'group_norm': norms.group_norm(4),
}


@pytest.mark.parametrize('masked', [False, True], ids=['', 'masked'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', NORMS)
def test_one_array_of_the_size_of_x(name, dtype, masked):
  """x itself, in its own type, and arrays of the size of the statistics."""
  norm = NORMS[name]
  actual, x = kept(norm, dtype, masked)
  statistics = 4 * np.prod(norm.measure(jnp.ones(SHAPE)).mean.shape)
  assert actual >= x
  assert actual <= x + FEW * statistics + 4 * SHAPE[0]
