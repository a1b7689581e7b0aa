"""Plain jit over a device mesh: rows in blocks with the cuts of the devices.

Over a mesh, a sum over the rows is a collective. A stable variance takes two
dependent sums, hence two collectives. Moments of blocks of rows inside a device
need no collective. These moments are small: one gather brings all of them to
each device, and an exact merge follows.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def num_shards(x: jax.Array) -> int:
  """Returns the number of equal blocks into which the mesh may cut the rows.

  The mesh is the mesh in context (`jax.set_mesh`). Without a mesh in context
  the number is 1: the statistics are equal, at the price of a second
  collective.

  Args:
    x: An array with the rows on axis 0, of any dtype.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or x.ndim == 0:
    return 1
  sizes = mesh.shape
  # The type of an array tells the cuts of Explicit axes, but not of Auto axes.
  # Any Auto axis may cut the rows, so the product counts all Auto axes.
  types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  auto = [sizes[a] for a in mesh.axis_names if types[a] is AxisType.Auto]
  explicit = [sizes[a] for a in _row_axes(x)]
  shards = math.prod(auto + explicit)
  # `math.gcd` fails for a symbolic number of rows, as `jax.export` gives. A
  # single shard therefore skips `gcd`.
  return math.gcd(x.shape[0], shards) if shards > 1 else 1


def _row_axes(x: jax.Array) -> tuple[str, ...]:
  """Returns the Explicit mesh axes along which the rows of `x` are cut."""
  spec = explicit_spec(x)
  names = spec[0] if spec else None
  if names is None:
    return ()
  return (names,) if isinstance(names, str) else tuple(names)


def explicit_spec(x: jax.Array) -> tuple[Any, ...]:
  """Returns the Explicit mesh axes that cut each axis of `x`; () for none."""
  spec = tuple(jax.typeof(x).sharding.spec)
  return spec if any(spec) else ()


def whole_features(x: jax.Array) -> jax.Array:
  """Brings the whole last axis to each device, if Explicit axes cut `x`."""
  spec = explicit_spec(x)
  if not spec or spec[-1] is None:
    return x
  return jax.sharding.reshard(x, cut(x, *spec[:-1], None))


def whole_rows(x: jax.Array) -> jax.Array:
  """Brings whole rows to each device, if Explicit axes cut the rows of `x`."""
  spec = explicit_spec(x)
  return jax.sharding.reshard(x, cut(x, spec[0])) if any(spec[1:]) else x


def whole(x: jax.Array) -> jax.Array:
  """Brings all of an array to each device, if Explicit axes cut the array."""
  return jax.sharding.reshard(x, cut(x)) if explicit_spec(x) else x


def cut_like(y: jax.Array, x: jax.Array) -> jax.Array:
  """Cuts `y` as Explicit axes cut `x`, an array of the shape of `y`."""
  if jax.typeof(x).sharding.spec == jax.typeof(y).sharding.spec:
    return y
  spec = explicit_spec(x)
  if spec == explicit_spec(y):
    return y
  return jax.sharding.reshard(y, cut(x if spec else y, *spec))


def reshape_like(
  arrays: Iterable[jax.Array], likes: Iterable[jax.Array]
) -> list[jax.Array]:
  """Reshapes small arrays, even if Explicit axes cut the arrays."""
  new = []
  for x, like in zip(arrays, likes, strict=True):
    specs = (*jax.typeof(x).sharding.spec, *jax.typeof(like).sharding.spec)
    if any(specs):
      new.append(cut_like(_reshape_cut(x, like.shape), like))
    else:
      new.append(x.reshape(like.shape))
  return new


def _reshape_cut(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Reshapes an array that Explicit axes cut.

  JAX can derive the cuts of the new axes only if the reshape removes leading
  axes of size 1. For any further reshape, each device gets the whole array.
  """
  gone = x.ndim - len(shape)
  if x.shape == (1,) * gone + tuple(shape):
    return jax.lax.squeeze(x, range(gone))
  return jax.sharding.reshard(x, cut(x)).reshape(shape)


def cut(x: jax.Array, *spec: Any) -> NamedSharding:
  """Returns a sharding over the mesh of `x`, in context or not."""
  return NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec))


def split_rows(x: jax.Array, blocks: int) -> jax.Array:
  """Reshapes (rows, ...) to (blocks, rows / blocks, ...)."""
  shape = (blocks, x.shape[0] // blocks, *x.shape[1:])
  axes = _row_axes(x)
  if not axes:
    return x.reshape(shape)
  spec = PartitionSpec(axes, None, *jax.typeof(x).sharding.spec[1:])
  return jax.lax.reshape(x, shape, out_sharding=spec)


def join_rows(x: jax.Array) -> jax.Array:
  """Undoes `split_rows`."""
  shape = (x.shape[0] * x.shape[1], *x.shape[2:])
  axes = _row_axes(x)
  if not axes:
    return x.reshape(shape)
  spec = PartitionSpec(axes, *jax.typeof(x).sharding.spec[2:])
  return jax.lax.reshape(x, shape, out_sharding=spec)


def everywhere(x: jax.Array) -> jax.Array:
  """Brings a small array whole to every device of the mesh in context."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  # `reshard` serves Explicit axes, and a sharding constraint serves Auto axes.
  if AxisType.Explicit in mesh.axis_types:
    return jax.sharding.reshard(x, PartitionSpec())
  if AxisType.Auto in mesh.axis_types:
    return jax.lax.with_sharding_constraint(x, PartitionSpec())
  return x
