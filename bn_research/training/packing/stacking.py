"""Arrays of many runs as one array, with the runs along the first axis."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from bn_research.training import keys


class Stacked:
  """An array of all runs of a pack, on the devices.

  Attributes:
    array: The array, (width, ...).
  """

  def __init__(self, array: jax.Array):
    """Keeps the array, and copies nothing to the host yet."""
    self.array = array

  @functools.cached_property
  def on_host(self) -> np.ndarray:
    """The numbers on the host; the parts of all runs share the copy."""
    is_key = keys.is_key(self.array)
    return np.array(jax.random.key_data(self.array) if is_key else self.array)


class Part:
  """The array of one run in a stacked array.

  A loop of a run keeps its state as parts. A part that goes unchanged from one
  program to the next stays on the devices.

  Attributes:
    stacked: The array of all runs.
    place: The place of the run.
  """

  def __init__(self, stacked: Stacked, place: int):
    """Copies nothing."""
    self.stacked = stacked
    self.place = place

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    """Returns the array on the host."""
    del copy
    return np.asarray(self.whole(), dtype)

  def __float__(self) -> float:
    """Returns the number of an array without axes."""
    return float(self.whole())

  def whole(self) -> Any:
    """Returns an array of NumPy, or a key of JAX."""
    numbers = self.stacked.on_host[self.place]
    if keys.is_key(self.stacked.array):
      impl = jax.random.key_impl(self.stacked.array)
      return jax.random.wrap_key_data(numbers, impl=impl)
    return numbers


def whole(tree: Any) -> Any:
  """Returns a pytree with arrays in the place of parts."""
  return jax.tree.map(
    lambda leaf: leaf.whole() if isinstance(leaf, Part) else leaf, tree
  )


def stack(
  leaves: Mapping[int, Any],
  width: int,
  sharding: NamedSharding,
  is_last_use: bool,
) -> jax.Array:
  """Stacks the arrays of runs.

  Args:
    leaves: The array of each run, by place: parts or arrays. Places without a
      run get the array of some run.
    width: The number of places.
    sharding: The sharding of the result, with the runs along the first axis.
    is_last_use: Whether nobody else needs the stacked array of the parts. The
      program may then write over the array.

  Returns:
    The stacked array, (width, ...).
  """
  first = next(iter(leaves.values()))
  if is_last_use and _are_whole(leaves):
    return first.stacked.array
  found = {place: whole(leaf) for place, leaf in leaves.items()}
  other = whole(first)
  rows = [found.get(place, other) for place in range(width)]
  if keys.is_key(other):
    return jax.device_put(jnp.stack(rows), sharding)
  return jax.device_put(np.stack(rows), sharding)


def _are_whole(leaves: Mapping[int, Any]) -> bool:
  """Returns whether arrays are parts of one stacked array, in their places."""
  first = next(iter(leaves.values()))
  return isinstance(first, Part) and all(
    isinstance(leaf, Part)
    and leaf.stacked is first.stacked
    and leaf.place == place
    for place, leaf in leaves.items()
  )
