"""Named mesh axes: pooling over them, with one collective each way.

Under `shard_map` JAX tracks over which mesh axes a value varies. Where a value
that does not vary meets one that does, differentiation inserts a sum over the
axis; the helpers here make that happen where it costs one collective.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

AxisNames = str | Sequence[str] | None


def axis_names(names: AxisNames) -> tuple[str, ...]:
  """Returns `names` as a tuple: `None` is (), a single name is (name,)."""
  if names is None:
    return ()
  return (names,) if isinstance(names, str) else tuple(names)


def require_bound(names: tuple[str, ...]) -> None:
  """Raises a ValueError that names the remedy if an axis is not bound."""
  for name in names:
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
  missing = tuple(sorted(varying(like) - varying(x)))
  return lax.pcast(x, missing, to='varying') if missing else x


def _tracked(names: tuple[str, ...]) -> bool:
  """Whether this is a `shard_map` that checks replication."""
  return names[0] in varying(lax.axis_index(names[0]))


def gather(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
  """Stacks every device's `x` along a new leading axis, on every device."""
  to = 'invarying' if _tracked(names) else 'varying'
  stacked = lax.all_gather(x, names, to=to)
  return stacked.reshape((-1, *x.shape))


def total(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
  """Sums `x` over the devices along `names`; `x` itself for no names."""
  return lax.psum(x, names) if names else x


def position(names: tuple[str, ...]) -> jax.Array:
  """Returns this device's index in the order in which `gather` stacks."""
  index = jnp.zeros((), jnp.int32)
  for name in names:
    index = index * lax.axis_size(name) + lax.axis_index(name)
  return index
