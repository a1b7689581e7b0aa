"""Named mesh axes: pooling over them, with one collective each way.

Under `shard_map` JAX tracks over which mesh axes a value varies. Where a value
that does not vary meets one that does, differentiation inserts a sum over the
axis; `vary_like` makes that happen where it costs one collective.
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
    names: The axes; none for a single device, or for plain jit.
    groups: None, or index groups that pool among themselves (`pmap` only).
  """

  names: tuple[str, ...] = ()
  groups: tuple[tuple[int, ...], ...] | None = None

  @classmethod
  def along(cls, names: AxisNames, groups: IndexGroups = None) -> 'Devices':
    """Returns the devices along one axis, several, or (None) no axis.

    Raises:
      ValueError: If an axis is not bound; the message says what to do.
    """
    if names is None:
      return _ONE_DEVICE
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
      _require_bound(name)
    return cls(names, None if groups is None else tuple(map(tuple, groups)))

  def gather(self, x: jax.Array) -> jax.Array:
    """Stacks every device's `x` along a new leading axis, on every device."""
    if len(self.names) > 1:
      return self._gather_by_sum(x)
    to = 'invarying' if self._tracked() and not self.groups else 'varying'
    stacked = lax.all_gather(
      x,
      self.names,
      to=to,
      axis_index_groups=self.groups,
    )
    return stacked.reshape((-1, *x.shape))

  def _gather_by_sum(self, x: jax.Array) -> jax.Array:
    """Gathers over several axes, of which `vmap` may have made some.

    JAX cannot gather over axes of two kinds at once, but it can sum: each
    device's `x` in a place of its own, among zeros.
    """
    size = math.prod(lax.axis_size(name) for name in self.names)
    places = vary_like(jnp.zeros((size, *x.shape), x.dtype), x)
    return self.total(places.at[self.position()].set(x))[0]

  def total(self, *parts: jax.Array) -> tuple[jax.Array, ...]:
    """Sums arrays of one type over the devices, together: one collective.

    They are returned as they are where no axis is named.
    """
    if not self.names:
      return parts
    flat, unravel = ravel_pytree(parts)
    return unravel(lax.psum(flat, self.names, axis_index_groups=self.groups))

  def position(self) -> jax.Array:
    """Returns this device's index in the order in which `gather` stacks."""
    sizes = [lax.axis_size(name) for name in self.names]
    index = jnp.zeros((), jnp.int32)
    for axis, name in enumerate(self.names):
      index += lax.axis_index(name) * math.prod(sizes[axis + 1 :])
    if self.groups is None:
      return index
    # Each device is in one group; `gather` stacks in the group's order.
    order = np.argsort(np.concatenate(self.groups))
    places = np.concatenate([np.arange(len(group)) for group in self.groups])
    return jnp.asarray(places[order], jnp.int32)[index]

  def _tracked(self) -> bool:
    """Whether this is a `shard_map` that checks replication."""
    return self.names[0] in varying(lax.axis_index(self.names[0]))


_ONE_DEVICE = Devices()


def _require_bound(name: str) -> None:
  try:
    lax.axis_size(name)
  except NameError:
    raise ValueError(
      f'axis_name={name!r} is not bound here. Under plain jit, also over a '
      'mesh, statistics are global already: leave axis_name out. Under '
      f'shard_map, pmap or vmap, give the map the axis name {name!r}.'
    ) from None


def varying(x: jax.Array) -> frozenset[str]:
  """Returns the mesh axes over which `x` varies, as `shard_map` knows them."""
  kind = jax.typeof(x)
  manual = getattr(kind, 'manual_axis_type', None)
  return frozenset(kind.vma if manual is None else manual.varying)


def vary_like(x: jax.Array, like: jax.Array) -> jax.Array:
  """Marks `x` as varying over every axis over which `like` varies."""
  if not (needed := varying(like)):
    return x
  missing = tuple(sorted(needed - varying(x)))
  return lax.pcast(x, missing, to='varying') if missing else x
