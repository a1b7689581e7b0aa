"""Pooling over named mesh axes, with one collective in each direction.

Under `shard_map` JAX tracks over which mesh axes a value varies. When a value
that is equal on all devices meets a varying value, differentiation inserts a
sum over the axis. `vary_like` moves this sum to a point of the program at which
the sum costs one collective.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

AxisNames: TypeAlias = str | Sequence[str] | None
IndexGroups: TypeAlias = Sequence[Sequence[int]] | None


@dataclasses.dataclass(frozen=True)
class Devices:
  """The devices along named axes of `shard_map`, `pmap` or `vmap`.

  Attributes:
    names: The names of the axes; empty for a single device and for plain jit.
    groups: None, or groups of device indices; each group pools alone (`pmap`
      only).
  """

  names: tuple[str, ...] = ()
  groups: tuple[tuple[int, ...], ...] | None = None

  @classmethod
  def along(cls, names: AxisNames, groups: IndexGroups = None) -> 'Devices':
    """Returns the devices along one axis, several axes, or no axis (None).

    Args:
      names: One name, a sequence of names, or None.
      groups: None, or groups of one size with each device in one group.

    Raises:
      ValueError: If an axis is not bound, or if the groups do not divide the
        devices. The message names the fix.
    """
    if names is None:
      return ONE_DEVICE
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
      _require_bound(name)
    if groups is None:
      return cls(names)
    groups = tuple(map(tuple, groups))
    _require_partition(groups, names)
    return cls(names, groups)

  def gather(self, x: jax.Array) -> jax.Array:
    """Stacks the `x` of every device along a new leading axis.

    Args:
      x: An array of the same shape and dtype on every device.

    Returns:
      An array (devices, *x.shape), the same on every device of a group.
    """
    if len(self.names) > 1:
      return self._gather_by_sum(x)
    # An invarying result lets `shard_map` return the statistics as replicated.
    # Groups of devices get different results, so groups need a varying result.
    to = 'invarying' if self._tracked() and not self.groups else 'varying'
    stacked = lax.all_gather(
      x, self.names, to=to, axis_index_groups=self.groups
    )
    return stacked.reshape((-1, *x.shape))

  def _gather_by_sum(self, x: jax.Array) -> jax.Array:
    """Gathers over several axes, by a sum.

    JAX cannot gather at once over an axis of `vmap` and an axis of a mesh, but
    JAX can sum over both. Each device writes `x` to a separate place of an
    array of zeros, and the sum of these arrays holds every `x`.
    """
    size = math.prod(lax.axis_size(name) for name in self.names)
    places = vary_like(jnp.zeros((size, *x.shape), x.dtype), x)
    return self.total(places.at[self.position()].set(x))[0]

  def total(self, *parts: jax.Array) -> tuple[jax.Array, ...]:
    """Sums arrays of one dtype over the devices, with one collective.

    Args:
      *parts: Arrays of any shapes, all of one dtype.

    Returns:
      The sums, in the same order. Without a named axis, the arrays themselves.
    """
    if not self.names:
      return parts
    # XLA may leave separate sums separate, so all parts travel as one array.
    flat, unravel = ravel_pytree(parts)
    return unravel(lax.psum(flat, self.names, axis_index_groups=self.groups))

  def position(self) -> jax.Array:
    """Returns the index of this device in a result of `gather`, int32 ()."""
    sizes = [lax.axis_size(name) for name in self.names]
    index = jnp.zeros((), jnp.int32)
    for axis, name in enumerate(self.names):
      index += lax.axis_index(name) * math.prod(sizes[axis + 1 :])
    if self.groups is None:
      return index
    # `gather` stacks the devices in the order of the group, and a group may
    # list device indices in any order. `argsort` inverts the concatenated lists
    # into a table from device index to place.
    order = np.argsort(np.concatenate(self.groups))
    places = np.concatenate([np.arange(len(group)) for group in self.groups])
    return jnp.asarray(places[order], jnp.int32)[index]

  def _tracked(self) -> bool:
    """Returns whether a `shard_map` checks replication here."""
    # Only then does JAX track the axis, and mark the axis index as varying.
    return self.names[0] in varying(lax.axis_index(self.names[0]))


ONE_DEVICE = Devices()


def require_names(names: AxisNames, groups: IndexGroups) -> None:
  """Raises a ValueError if groups of devices come without an axis name."""
  if groups is not None and names is None:
    raise ValueError(
      f'axis_index_groups={groups} divides the devices of an axis, and '
      'axis_name is None; give axis_name, or leave axis_index_groups out.'
    )


def _require_bound(name: str) -> None:
  try:
    lax.axis_size(name)
  except NameError:
    raise ValueError(
      f'axis_name={name!r} is not bound here. Under plain jit, also over a '
      'mesh, statistics are global already: leave axis_name out. Under '
      f'shard_map, pmap or vmap, give the map the axis name {name!r}.'
    ) from None


def _require_partition(
  groups: tuple[tuple[int, ...], ...], names: tuple[str, ...]
) -> None:
  """Raises unless each device is in one group, and all groups are as large."""
  size = math.prod(map(lax.axis_size, names))
  sizes = set(map(len, groups))
  if sorted(sum(groups, ())) != list(range(size)) or len(sizes) != 1:
    raise ValueError(
      f'axis_index_groups={groups} must divide the {size} devices of '
      f'axis_name={names} into groups of one size, each device in one group.'
    )


def varying(x: jax.Array) -> frozenset[str]:
  """Returns the mesh axes over which `x` varies, as tracked by `shard_map`."""
  kind = jax.typeof(x)
  # The attribute has another name in earlier versions of JAX.
  manual = getattr(kind, 'manual_axis_type', None)
  return frozenset(kind.vma if manual is None else manual.varying)


def vary_like(x: jax.Array, like: jax.Array) -> jax.Array:
  """Marks `x` as varying over every axis over which `like` varies."""
  # Outside of `shard_map` nothing varies: a cheap exit for the common case.
  if not (needed := varying(like)):
    return x
  missing = tuple(sorted(needed - varying(x)))
  return lax.pcast(x, missing, to='varying') if missing else x
