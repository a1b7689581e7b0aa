"""Every normalization where JAX forbids silent promotion."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from bn_research import norms
from bn_research.layers import linen as linen_layers
from bn_research.layers import nnx as layers
from tests import rows
from tests.normalizations import each_name
from tests.quick import some


@pytest.mark.parametrize('dtype', some(['bfloat16'], ['float32']))
@each_name
def test_ranks_and_types_are_never_promoted_in_silence(row, dtype):
  sample = rows.cast(row.sample(), dtype)
  mask = row.mask('rows')
  norm = row.make()
  state = norm.init(row.features)
  with (
    jax.numpy_rank_promotion('raise'),
    jax.numpy_dtype_promotion('strict'),
  ):

    def loss(sample):
      y, after = rows.call(norm, sample, state, mask)
      return jnp.sum(y), after

    _, after = jax.jit(jax.grad(loss, has_aux=True))(sample)
    if norm.remembers:
      rows.call(norm, sample, after, mask, use_running=True, update=False)


@pytest.mark.parametrize('dtype', some(['bfloat16'], ['float32']))
@pytest.mark.parametrize(
  'norm',
  [norms.batch_norm(group_size=3), norms.batch_whitening('zca')],
  ids=['ghosts', 'whitening'],
)
def test_types_of_layers_are_not_either(norm, dtype):
  """With a dtype; without, Flax asks JAX what its types promote to."""
  x = jnp.arange(28, dtype=dtype).reshape(7, 4)
  types = {'dtype': dtype, 'param_dtype': dtype}
  with (
    jax.numpy_rank_promotion('raise'),
    jax.numpy_dtype_promotion('strict'),
  ):
    layers.Norm(norm, 4, **types, rngs=nnx.Rngs(0))(x)
    layers.BatchNorm(4, **types, rngs=nnx.Rngs(0))(x)
    for layer in (
      linen_layers.Norm(norm, use_running_average=False, **types),
      linen_layers.BatchNorm(use_running_average=False, **types),
    ):
      variables = layer.init(jax.random.key(0), x)
      layer.apply(variables, x, mutable=['batch_stats'])
