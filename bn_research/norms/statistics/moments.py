"""Moments of a set of activations: the one statistics engine.

A set of activations is summarized by how many there are, their mean, and the
sum of squared deviations from that mean. Two summaries merge into the summary
of the union exactly (Chan, Golub and LeVeque, 1979), whatever the sizes; no
mean of means is taken anywhere, and no difference of large squares.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bn_research.norms.roots.tags import tag_statistics
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.collectives import Devices, vary_like
from bn_research.norms.statistics.memory import rematerialized

Axes: TypeAlias = tuple[int, ...]
Shape: TypeAlias = tuple[int, ...]

_ONE_DEVICE = Devices()
_FLOAT32 = jnp.dtype('float32')


class Moments(NamedTuple):
  """Count, mean and co-moment of a set of activations.

  Attributes:
    count: How many activations, float, broadcastable against `mean`.
    mean: Their mean, at least float32.
    comoment: Sum of squared deviations from the mean, of the shape of `mean`.
      For covariances, sums of products of deviations within blocks of d
      channels, (..., blocks, d, d) to a mean (..., channels).
  """

  count: jax.Array  # type: ignore[assignment]  # tuple.count is not needed
  mean: jax.Array
  comoment: jax.Array

  @property
  def variance(self) -> jax.Array:
    """The biased variance or covariance, comoment / count; 0 if empty."""
    count = jnp.maximum(self.count, 1)
    if self.comoment.ndim > self.mean.ndim:
      count = self._like_comoment(count)
    return self.comoment / count

  def with_variance(self, variance: jax.Array) -> 'Moments':
    """Returns these moments with another variance, or covariance."""
    return self._replace(comoment=self._like_comoment(self.count) * variance)

  def unbiased(self, ddof: int = 1) -> 'Moments':
    """Returns these moments with `variance` multiplied by n / (n - ddof)."""
    if ddof == 0:
      return self
    factor = self.count / jnp.maximum(self.count - ddof, 1)
    comoment = self.comoment * self._like_comoment(factor)
    return self._replace(comoment=comoment)

  def merged(self, axis: int | Axes = 0) -> 'Moments':
    """Returns the moments of the union of the sets along `axis` of the means.

    With n = Σ nᵢ and m = Σ nᵢ mᵢ / n, the co-moment of the union is
    Σ (Mᵢ + nᵢ (mᵢ - m)²); for covariances the square is an outer product.
    Empty sets change nothing. Axes are kept, with size 1.
    """
    add = partial(jnp.sum, axis=axis, keepdims=True)
    counts = jnp.broadcast_to(self.count, self.mean.shape)
    count = add(counts)
    total = jnp.maximum(count, 1)
    mean = add(counts * self.mean) / total
    # Twice: equal means must not differ from theirs by its rounding.
    mean += lax.stop_gradient(add(counts * (self.mean - mean))) / total
    deviation = self.mean - mean
    if self.is_covariance:
      between = self._like_comoment(counts) * self._outer(deviation)
    else:
      between = counts * deviation * deviation
    return Moments(count, mean, add(self.comoment + between))

  @property
  def is_covariance(self) -> bool:
    """Whether the co-moment is of products, not of squares."""
    return self.comoment.ndim > self.mean.ndim

  def _like_comoment(self, count: jax.Array) -> jax.Array:
    """Lets `count`, shaped like the mean, divide the co-moment."""
    return count[..., :1, None, None] if self.is_covariance else count

  def _outer(self, deviation: jax.Array) -> jax.Array:
    blocks = in_blocks(deviation, self.comoment.shape[-1])
    return blocks[..., :, None] * blocks[..., None, :]


def move_as_one_array(
  move: Callable[[jax.Array], jax.Array], blocks: Moments
) -> Moments:
  """Moves moments, (blocks, ...), between devices as one array.

  Args:
    move: Takes (blocks, size) to (any number of blocks, size).
    blocks: Moments with a leading axis.

  Returns:
    Moments with another leading axis.
  """
  # Not broadcast_to: the count must be sharded as the mean is.
  count = jnp.zeros_like(blocks.mean) + blocks.count
  leaves = blocks._replace(count=count)
  flat = [leaf.reshape((leaf.shape[0], -1)) for leaf in leaves]
  ends = np.cumsum([leaf.shape[1] for leaf in flat]).tolist()
  moved = tag_statistics(move(jnp.concatenate(flat, 1)))
  moved = jnp.split(moved, ends[:-1], axis=1)
  return Moments(
    *(
      new.reshape((-1, *leaf.shape[1:]))
      for new, leaf in zip(moved, leaves, strict=True)
    )
  )


def gathered(blocks: Moments, devices: Devices) -> Moments:
  """Moments of the blocks of all devices, (devices · blocks, ...)."""
  if not devices.names:
    return blocks
  return move_as_one_array(
    lambda flat: devices.gather(flat).reshape((-1, flat.shape[-1])), blocks
  )


def pooled(local: Moments, devices: Devices) -> Moments:
  """Merges the moments of all devices: one collective."""
  if not devices.names:
    return local
  blocks = jax.tree.map(lambda leaf: leaf[None], local)
  merged = gathered(blocks, devices).merged(0)
  return jax.tree.map(lambda leaf: leaf[0], merged)


def joined(
  a: Moments,
  b: Moments,
  merge: Callable[[Moments, int], Moments] = Moments.merged,
) -> Moments:
  """Returns the moments of the union of two sets.

  Args:
    a: Moments of one set.
    b: Moments of another set, of the same shapes.
    merge: Takes moments with a leading axis, and the axis along which sets are
      merged; by default the exact merge of means and (co)variances.
  """
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), a, b)
  return jax.tree.map(lambda leaf: leaf[0], merge(stacked, 0))


def in_blocks(x: jax.Array, size: int) -> jax.Array:
  """(..., channels) to (..., blocks, size); zeros fill the last block."""
  lacking = -x.shape[-1] % size
  if lacking:
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, lacking),))
  return x.reshape((*x.shape[:-1], -1, size))


def wide_type(x: jax.Array) -> Any:
  """The type of statistics: float32, or that of `x` where it is wider."""
  # Not promote_types: the user may have forbidden silent promotion.
  return x.dtype if x.dtype.itemsize > 4 else _FLOAT32


def wide(x: jax.Array) -> jax.Array:
  """Casts to the type of statistics."""
  return x if x.dtype.itemsize >= 4 else x.astype(_FLOAT32)


def apply_mask(mask: jax.Array | None, x: jax.Array) -> jax.Array:
  """Zero where the mask is False; a select, so that NaN behind it is gone."""
  return x if mask is None else jnp.where(mask, x, 0)


def estimate(
  x: jax.Array,
  mask: jax.Array | None,
  axes: Axes,
  devices: Devices = _ONE_DEVICE,
  centre: bool = True,
  groups: int | None = None,
) -> Moments:
  """Estimates moments over `axes` of `x` and over devices.

  Two passes over `x` on each device, then one gather of the small results and
  an exact merge. The derivative, of any order and in both modes, is

    dmean = Σ dx / n,    dcomoment = 2 Σ (x - mean) dx,

  the two sums travelling together: one collective. The backward pass keeps `x`
  and arrays of the size of the mean.

  Args:
    x: Activations of any shape, floating.
    mask: None, or boolean, broadcastable against `x`: False is not in the set
      and may hold anything, NaN included.
    axes: Axes of `x` that are pooled; they stay, with size 1.
    devices: Devices over which is pooled too.
    centre: Whether deviations are from the mean, or (False) from zero: then
      the mean returned is zero.
    groups: None, or into how many groups of neighbours the last axis, not one
      of `axes`, is divided; each group is pooled. That axis then keeps its
      size, every place with the moments of its group; with one group it has
      size 1.

  Returns:
    The moments, in float32 at least.
  """
  return _estimate(x, mask, axes, devices, centre, groups)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
def _estimate(x, mask, axes, devices, centre, groups):
  local = _local(x, mask, axes, centre, groups)
  return pooled(local, devices) if devices.names else local


def _local(x, mask, axes, centre, groups) -> Moments:
  add = partial(_sum, axes=axes, groups=groups)
  count = count_kept(x, mask, axes)
  if groups is not None:
    each = (*count.shape[:-1], x.shape[-1])
    count = _over_groups(jnp.broadcast_to(count, each), groups)
  x = wide(x)
  x = x if mask is None else apply_mask(mask, x)
  if not centre:
    total = add(x * x)
    return Moments(count, jnp.zeros_like(total), total)
  mean = add(x) / jnp.maximum(count, 1)
  deviation = x - mean
  deviation = deviation if mask is None else apply_mask(mask, deviation)
  return Moments(count, mean, add(deviation * deviation))


def _sum(x: jax.Array, axes: Axes, groups: int | None) -> jax.Array:
  """Sums over `axes`, which stay, and then within groups of the last axis."""
  total = x.sum(axes, keepdims=True)
  return total if groups is None else _over_groups(total, groups)


def _over_groups(total: jax.Array, groups: int) -> jax.Array:
  if groups == 1:
    return total.sum(-1, keepdims=True)
  cut = (*total.shape[:-1], groups, total.shape[-1] // groups)
  sums = meshes.whole_features(total).reshape(cut).sum(-1, keepdims=True)
  sums = jnp.broadcast_to(sums, cut).reshape(total.shape)
  return meshes.cut_like(sums, total)


def count_kept(x, mask, axes) -> jax.Array:
  """How many are in the set: keeps the dimensions of `x`, small or full."""
  dtype = wide_type(x)
  if mask is None:
    size = 1
    for axis in axes:
      size *= x.shape[axis]
    count = jnp.full((1,) * x.ndim, size, dtype)
    return vary_like(count, x)
  mask = mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
  unseen = 1
  for axis in axes:
    unseen *= x.shape[axis] // mask.shape[axis]
  count = mask.astype(dtype).sum(axes, keepdims=True)
  return count * unseen


@_estimate.defjvp
def _estimate_jvp(axes, devices, centre, groups, primals, tangents):
  x, mask = primals
  moments = tag_statistics(_estimate(x, mask, axes, devices, centre, groups))
  add = partial(_sum, axes=axes, groups=groups)
  sums = partial(_tangent_sums, add=add, centre=centre)
  local = rematerialized(sums)(x, mask, moments.mean, tangents[0])
  dsum, dcomoment = devices.total(*local)
  dmean = dsum / jnp.maximum(moments.count, 1)
  return moments, Moments(jnp.zeros_like(moments.count), dmean, dcomoment)


def _tangent_sums(x, mask, mean, dx, add, centre):
  dx = apply_mask(mask, wide(dx))
  deviation = apply_mask(mask, wide(x) - mean)
  dcomoment = 2 * add(deviation * dx)
  dsum = add(dx) if centre else jnp.zeros_like(dcomoment)
  return dsum, dcomoment
