"""Plain jit over a device mesh: cutting rows where the devices cut them.

Over a mesh, a sum over the rows is a collective. Two sums that wait for each
other, as in a stable variance, are two. Moments of blocks of rows that no
device boundary crosses need none; they are small, so that one gather brings
all of them everywhere, and they merge exactly.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def num_shards(x: jax.Array) -> int:
  """Into how many equal blocks the mesh in context may cut the rows of `x`.

  Without a mesh in context (`jax.set_mesh`) that is one: the result is the
  same, at the price of a second collective.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or x.ndim == 0:
    return 1
  sizes = mesh.shape
  types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  auto = [sizes[a] for a in mesh.axis_names if types[a] is AxisType.Auto]
  explicit = [sizes[a] for a in _row_axes(x)]
  shards = math.prod(auto + explicit)
  # Not gcd of one: the number of rows may be a symbol of jax.export.
  return math.gcd(x.shape[0], shards) if shards > 1 else 1


def _row_axes(x: jax.Array) -> tuple[str, ...]:
  """The Explicit mesh axes along which the rows of `x` are cut."""
  spec = explicit_spec(x)
  names = spec[0] if spec else None
  if names is None:
    return ()
  return (names,) if isinstance(names, str) else tuple(names)


def explicit_spec(x: jax.Array) -> tuple[Any, ...]:
  """The Explicit mesh axes along which each axis of `x` is cut; () for none."""
  spec = tuple(jax.typeof(x).sharding.spec)
  return spec if any(spec) else ()


def whole_features(x: jax.Array) -> jax.Array:
  """Brings the last axis whole to each device, if Explicit axes cut it."""
  spec = explicit_spec(x)
  if not spec or spec[-1] is None:
    return x
  return jax.sharding.reshard(x, cut(x, *spec[:-1], None))


def whole_rows(x: jax.Array) -> jax.Array:
  """Brings all rows to each device, if Explicit axes cut them."""
  spec = explicit_spec(x)
  if not spec or spec[0] is None:
    return x
  return jax.sharding.reshard(x, cut(x, None, *spec[1:]))


def cut_like(y: jax.Array, x: jax.Array) -> jax.Array:
  """Cuts `y` where Explicit axes cut `x`, which has its shape."""
  if jax.typeof(x).sharding.spec == jax.typeof(y).sharding.spec:
    return y
  spec = explicit_spec(x)
  if spec == explicit_spec(y):
    return y
  return jax.sharding.reshard(y, cut(x if spec else y, *spec))


def reshape(
  arrays: Iterable[jax.Array], shapes: Iterable[tuple[int, ...]]
) -> list[jax.Array]:
  """Reshapes small arrays, which Explicit axes may cut."""
  new = []
  for x, shape in zip(arrays, shapes, strict=True):
    is_cut = any(jax.typeof(x).sharding.spec)
    new.append(_reshape_cut(x, shape) if is_cut else x.reshape(shape))
  return new


def _reshape_cut(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Reshapes an array that Explicit axes cut.

  JAX cannot tell how the new axes are to be cut, unless axes of size 1 are all
  that goes: else each device gets the whole array.
  """
  gone = x.ndim - len(shape)
  if x.shape == (1,) * gone + tuple(shape):
    return jax.lax.squeeze(x, range(gone))
  return jax.sharding.reshard(x, cut(x)).reshape(shape)


def cut(x: jax.Array, *spec: Any) -> NamedSharding:
  """A sharding over the mesh of `x`, which need not be in context."""
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
  """Brings all of a small array to every device of the mesh in context."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  if AxisType.Explicit in mesh.axis_types:
    return jax.sharding.reshard(x, PartitionSpec())
  if AxisType.Auto in mesh.axis_types:
    return jax.lax.with_sharding_constraint(x, PartitionSpec())
  return x
