"""Digests of arrays, by which damage on a disk is noticed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bn_research.training import keys

_STRIDE = np.uint32(0x9E3779B1)  # Odd: indices stay distinct.


def of_arrays(tree: Any) -> dict[str, str]:
  """Computes a digest of 64 bits of each array of a pytree.

    mᵢ = mix(bitsᵢ + stride · i),   digest = (Σ mᵢ, Σ (2i + 1) mᵢ)  mod 2³²,

  summed over the elements i. The function `mix` is the finalizer of
  MurmurHash3, a bijection of 32-bit words. A change of a single element
  therefore always changes the digest. A sum does not depend on the order of the
  elements: the digest of a sharded array is the sum over the shards, on any
  number of devices, and no array is gathered.

  Args:
    tree: A pytree of arrays of any shape and dtype, PRNG keys included.

  Returns:
    Sixteen hexadecimal digits for each array, by the path of the array.

  Source: Appleby, MurmurHash3 (2011), `fmix32`.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  found = np.asarray(_of_leaves([leaf for _, leaf in leaves]))
  return {
    jax.tree_util.keystr(path): ''.join(f'{word:08x}' for word in digest)
    for (path, _), digest in zip(leaves, found, strict=True)
  }


@jax.jit
def _of_leaves(leaves: list[jax.Array]) -> jax.Array:
  # One array, because each array that leaves a device costs a call.
  return jnp.stack([_of_array(leaf) for leaf in leaves])


def _of_array(array: jax.Array) -> jax.Array:
  """Returns both words of the digest, (2,) uint32."""
  words = _words(array)
  # Not a reshape to one axis: a reshape would gather a sharded array.
  index = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    position = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    index = index * np.uint32(size % 2**32) + position
  mixed = _mix(words + _STRIDE * index)
  weighted = mixed * (2 * index + 1)
  # One reduction of both, which reads the array once. The first axis is summed
  # afterwards: XLA cuts the first axis of a result over the cores of a CPU.
  zero = np.uint32(0)
  sums = lax.reduce(
    (mixed, weighted),
    (zero, zero),
    lambda a, b: (a[0] + b[0], a[1] + b[1]),
    tuple(range(1, words.ndim)),
  )
  return jnp.stack([rows.sum(dtype=jnp.uint32) for rows in sums])


def _words(array: jax.Array) -> jax.Array:
  """Returns the bits of an array as uint32; wide elements make two words."""
  if keys.is_key(array):
    array = jax.random.key_data(array)
  if jnp.issubdtype(array.dtype, jnp.complexfloating):
    array = jnp.stack([array.real, array.imag], -1)
  if array.dtype == bool:
    return array.astype(jnp.uint32)
  kinds = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
  bits = lax.bitcast_convert_type(array, kinds[array.dtype.itemsize])
  return bits.astype(jnp.uint32)


def _mix(word: jax.Array) -> jax.Array:
  """Applies the finalizer `fmix32` of MurmurHash3."""
  word ^= word >> 16
  word *= np.uint32(0x85EBCA6B)
  word ^= word >> 13
  word *= np.uint32(0xC2B2AE35)
  return word ^ (word >> 16)
