"""Every normalization where JAX forbids silent promotion."""

import jax
import jax.numpy as jnp
import pytest

from tests import rows
from tests.normalizations import each_name


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
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

    _, after = jax.grad(loss, has_aux=True)(sample)
    if norm.remembers:
      rows.call(norm, sample, after, mask, use_running=True, update=False)
