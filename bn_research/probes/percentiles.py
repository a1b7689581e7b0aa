"""Exact percentiles without a sort, because XLA sorts slowly on a CPU."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LAST = np.uint32(0xFFFFFFFF)
_BITS = 32
_ROWS = 8


def percentiles(x: jax.Array, q: Sequence[float]) -> jax.Array:
  """Computes percentiles over the last axis, as `np.percentile(x, q, axis=-1)`.

  A bisection finds the value at a rank. Each of 32 iterations counts the values
  below a threshold, and determines a bit of the threshold.

  Args:
    x: (..., n) values. The computation is in float32.
    q: (k,) percentages in [0, 100], not traced.

  Returns:
    (k, ...) float32, by linear interpolation between the two nearest values.
    The result is NaN for n values with a NaN.
  """
  position = np.asarray(q, np.float64) / 100 * (x.shape[-1] - 1)
  position = position.reshape((-1,) + (1,) * (x.ndim - 1))
  rank = np.floor(position).astype(np.int32)
  lower, upper = _at_rank_and_next(x.astype(jnp.float32), rank)
  result = _interpolate(lower, upper, (position - rank).astype(np.float32))
  return jnp.where(jnp.isnan(x).any(-1), jnp.nan, result)


def _at_rank_and_next(
  x: jax.Array, rank: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """Returns the values at `rank` and at `rank + 1` of the sorted last axis.

  At the last rank, both values are the largest value.
  """
  rows = _in_rows(_to_keys(x))
  last_rank = x.shape[-1] - 1

  # Sets bit 31 - i of the key if at most `rank` values are below the candidate.
  # The final key is the largest key with this property: the key at the rank.
  def set_bit(i: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    candidate = key | (jnp.uint32(1) << (_BITS - 1 - i).astype(jnp.uint32))
    key = jnp.where(_count(rows, candidate - 1) <= rank, candidate, key)
    return key, key

  def find_next(i: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    del i
    is_same = _count(rows, key) > np.minimum(rank + 1, last_rank)
    return key, jnp.where(is_same, key, _smallest_above(rows, key))

  # A single loop does both tasks, because a loop reads the data from memory.
  # Outside the loop, XLA may compute the data again with a different last bit,
  # and the key found by `set_bit` is then missing in the data.
  def visit(i: jax.Array, keys: tuple[jax.Array, jax.Array]) -> Any:
    return jax.lax.cond(i < _BITS, set_bit, find_next, i, keys[0])

  start = jnp.zeros((len(rank), *x.shape[:-1]), jnp.uint32)
  keys = jax.lax.fori_loop(0, _BITS + 1, visit, (start, start))
  return _from_keys(keys[0]), _from_keys(keys[1])


def _count(rows: jax.Array, key: jax.Array) -> jax.Array:
  """Returns the number of keys that are at most `key`."""
  # On a CPU, XLA adds whole rows in a vectorized loop. A single long sum is
  # three times slower, because XLA splits the sum into windows.
  counts = ((row <= key[..., None]).astype(jnp.int32) for row in rows)
  return functools.reduce(jnp.add, counts).sum(-1)


def _smallest_above(rows: jax.Array, key: jax.Array) -> jax.Array:
  above = (jnp.where(row > key[..., None], row, _LAST) for row in rows)
  return functools.reduce(jnp.minimum, above).min(-1)


def _in_rows(keys: jax.Array) -> jax.Array:
  """Cuts the last axis into rows: (..., n) to (_ROWS, ..., ⌈n / _ROWS⌉)."""
  # The padding is above the keys of all numbers, and therefore never counts.
  missing = -keys.shape[-1] % _ROWS
  padding = [(0, 0)] * (keys.ndim - 1) + [(0, missing)]
  padded = jnp.pad(keys, padding, constant_values=_LAST)
  return jnp.moveaxis(padded.reshape(*keys.shape[:-1], _ROWS, -1), -2, 0)


def _interpolate(
  lower: jax.Array, upper: jax.Array, fraction: np.ndarray
) -> jax.Array:
  value = lower * (1 - fraction) + upper * fraction
  # Without this case, two equal values would be rounded, and an infinite value
  # would give NaN by 0 · ∞.
  return jnp.where((fraction == 0) | (lower == upper), lower, value)


def _to_keys(x: jax.Array) -> jax.Array:
  """Maps float32 to uint32, and keeps the order."""
  # IEEE 754 is sign-magnitude: a set sign bit reverses the order of the bits.
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _from_keys(keys: jax.Array) -> jax.Array:
  bits = jnp.where(keys >> 31 == 1, keys & (_LAST >> 1), ~keys)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)
