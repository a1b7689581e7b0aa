"""Bytes between the passes, beside counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from bn_research.training.costs import memory

W, X = jnp.zeros((5, 7)), jnp.zeros((3, 5))


def test_a_linear_function_keeps_its_arguments_only():
  assert memory.kept(lambda w, x: (x @ w).sum(), W, X) == 0


def test_a_nonlinearity_keeps_an_array():
  assert memory.kept(lambda w, x: jnp.exp(x @ w).sum(), W, X) == 4 * 3 * 7


def test_an_array_that_two_operations_keep_counts_once():
  def function(w, x):
    h = jnp.exp(x @ w)  # `exp` and the product keep the result.
    return (h * h).sum()

  assert memory.kept(function, W, X) == 4 * 3 * 7


def test_rematerialization_keeps_the_inputs_of_blocks():
  def block(w, h):
    return jnp.exp(jnp.exp(jnp.exp(h @ w)))

  def function(w, x, call=block):
    return call(w, call(w, x)).sum()

  w = jnp.zeros((5, 5))
  kept = memory.kept(function, w, X)
  less = memory.kept(lambda w, x: function(w, x, jax.checkpoint(block)), w, X)
  assert kept == 2 * 3 * 4 * 3 * 5
  assert less == 4 * 3 * 5


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_narrow_activations_take_half(dtype):
  def function(w, x):
    return jnp.exp(x.astype(dtype) @ w.astype(dtype)).astype(jnp.float32).sum()

  # The rounded input and kernel are new arrays.
  numbers = {jnp.bfloat16: 3 * 7 + 5 * 7 + 3 * 5, jnp.float32: 3 * 7}
  size = jnp.dtype(dtype).itemsize
  assert 0 < memory.kept(function, W, X) <= size * numbers[dtype]
