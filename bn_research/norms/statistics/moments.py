"""Moments of a set of activations: the only engine of statistics.

Three numbers summarize a set of activations: the count, the mean, and the sum
of squared deviations from the mean. Two summaries of any sizes merge exactly
into the summary of the union (Chan, Golub and LeVeque, 1979). The engine takes
no mean of means and no difference of large squares.
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
from bn_research.norms.statistics.collectives import (
  ONE_DEVICE,
  Devices,
  vary_like,
)
from bn_research.norms.statistics.memory import rematerialized

Axes: TypeAlias = tuple[int, ...]
Shape: TypeAlias = tuple[int, ...]

_FLOAT32 = jnp.dtype('float32')


class Moments(NamedTuple):
  """Count, mean and co-moment of a set of activations.

  Attributes:
    count: Number of activations, floating, broadcastable against `mean`.
    mean: Mean of the activations, in float32 or a wider type.
    comoment: Sum of squared deviations from the mean, of the shape of `mean`.
      For covariances, sums of products of deviations in blocks of d channels:
      (..., blocks, d, d), with a mean (..., channels).
  """

  count: jax.Array  # type: ignore[assignment]  # tuple.count is not needed
  mean: jax.Array
  comoment: jax.Array

  @property
  def variance(self) -> jax.Array:
    """Returns the biased variance or covariance, comoment / count.

    The variance of an empty set is 0.
    """
    count = jnp.maximum(self.count, 1)
    if self.comoment.ndim > self.mean.ndim:
      count = self._like_comoment(count)
    return self.comoment / count

  def with_variance(self, variance: jax.Array) -> 'Moments':
    """Returns the moments with a given variance or covariance."""
    return self._replace(comoment=self._like_comoment(self.count) * variance)

  def unbiased(self, ddof: int = 1) -> 'Moments':
    """Returns the moments with `variance` multiplied by n / (n - ddof)."""
    if ddof == 0:
      return self
    # A single activation has no unbiased variance. A divisor of at least 1
    # keeps the biased variance 0 instead of 0 / 0.
    factor = self.count / jnp.maximum(self.count - ddof, 1)
    comoment = self.comoment * self._like_comoment(factor)
    return self._replace(comoment=comoment)

  def merged(self, axis: int | Axes = 0) -> 'Moments':
    """Returns the moments of the union of the sets along `axis` of the means.

    With n = Σ nᵢ and m = Σ nᵢ mᵢ / n, the co-moment of the union is

      M = Σ (Mᵢ + nᵢ (mᵢ - m)²).

    For covariances the square is an outer product. An empty set has no effect.

    Args:
      axis: Axes of the means that count sets; the axes stay, with size 1.

    Source: Chan, Golub and LeVeque (1979).
    """
    add = partial(jnp.sum, axis=axis, keepdims=True)
    counts = jnp.broadcast_to(self.count, self.mean.shape)
    count = add(counts)
    total = jnp.maximum(count, 1)
    mean = add(counts * self.mean) / total
    # Refine the mean once more. Otherwise the mean of identical means differs
    # from these means by a rounding error. The exact correction is zero, so no
    # derivative flows through the correction.
    mean += lax.stop_gradient(add(counts * (self.mean - mean))) / total
    deviation = self.mean - mean
    if self.is_covariance:
      between = self._like_comoment(counts) * self._outer(deviation)
    else:
      between = counts * deviation * deviation
    return Moments(count, mean, add(self.comoment + between))

  @property
  def is_covariance(self) -> bool:
    """Returns whether the co-moment holds products of channels."""
    return self.comoment.ndim > self.mean.ndim

  def _like_comoment(self, count: jax.Array) -> jax.Array:
    """Reshapes `count`, of the shape of the mean, to divide the co-moment."""
    return count[..., :1, None, None] if self.is_covariance else count

  def _outer(self, deviation: jax.Array) -> jax.Array:
    blocks = in_blocks(deviation, self.comoment.shape[-1])
    return blocks[..., :, None] * blocks[..., None, :]


jax.export.register_namedtuple_serialization(
  Moments, serialized_name='bn_research.norms.Moments'
)


def move_as_one_array(
  move: Callable[[jax.Array], jax.Array], blocks: Moments
) -> Moments:
  """Moves moments, (blocks, ...), between devices as one array.

  One array takes one collective, and three arrays may take three.

  Args:
    move: A function from (blocks, size) to (any number of blocks, size).
    blocks: Moments with a leading axis of blocks.

  Returns:
    Moments with the leading axis that `move` makes.
  """
  # The concatenation needs leaves of one sharding. An addition gives the count
  # the sharding of the mean, but `broadcast_to` would not.
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
  """Returns the moments of the blocks of all devices.

  Args:
    blocks: Moments (blocks, ...) of this device.
    devices: The devices to gather from.

  Returns:
    Moments (devices · blocks, ...), with one collective.
  """
  if not devices.names:
    return blocks
  return move_as_one_array(
    lambda flat: devices.gather(flat).reshape((-1, flat.shape[-1])), blocks
  )


def pooled(local: Moments, devices: Devices) -> Moments:
  """Merges the moments of all devices, with one collective."""
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
    merge: A function of moments with a leading axis and of the axis to merge
      along. The default is the exact merge of means and (co)variances.
  """
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), a, b)
  return jax.tree.map(lambda leaf: leaf[0], merge(stacked, 0))


def in_blocks(x: jax.Array, size: int) -> jax.Array:
  """Reshapes (..., channels) to (..., blocks, size), with zeros at the end."""
  lacking = -x.shape[-1] % size
  if lacking:
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, lacking),))
  return x.reshape((*x.shape[:-1], -1, size))


def wide_type(x: jax.Array) -> Any:
  """Returns the type of the statistics of `x`: float32 or wider."""
  # `jnp.promote_types` fails if the user has forbidden silent promotion.
  return x.dtype if x.dtype.itemsize > 4 else _FLOAT32


def wide(x: jax.Array) -> jax.Array:
  """Casts `x` to the type of the statistics of `x`."""
  return x if x.dtype.itemsize >= 4 else x.astype(_FLOAT32)


def apply_mask(mask: jax.Array | None, x: jax.Array) -> jax.Array:
  """Returns `x` with zeros for masked activations."""
  # A select removes NaN behind a mask. A product with the mask would not.
  return x if mask is None else jnp.where(mask, x, 0)


def aligned(parameter: jax.Array, x: jax.Array) -> jax.Array:
  """Returns a parameter with the type and the number of axes of `x`.

  The user may tell JAX to refuse both conversions where they are silent.

  Args:
    parameter: Broadcastable against `x`.
    x: Activations.
  """
  missing = (1,) * (x.ndim - parameter.ndim)
  return parameter.astype(x.dtype).reshape(missing + parameter.shape)


def affine(
  y: jax.Array,
  scale: jax.Array | None,
  bias: jax.Array | None,
  mask: jax.Array | None,
) -> jax.Array:
  """Returns y · scale + bias of the type of `y`, and 0 where masked.

  Args:
    y: Activations.
    scale: None for 1, or broadcastable against `y`.
    bias: None for 0, or broadcastable against `y`.
    mask: None, or boolean and broadcastable against `y`.
  """
  y = y if scale is None else y * aligned(scale, y)
  # The mask comes last, because a bias would move masked activations from 0.
  return apply_mask(mask, y if bias is None else y + aligned(bias, y))


def estimate(
  x: jax.Array,
  mask: jax.Array | None,
  axes: Axes,
  devices: Devices = ONE_DEVICE,
  centre: bool = True,
  groups: int | None = None,
) -> Moments:
  """Estimates moments over `axes` of `x` and over devices.

  Each device makes two passes over `x`. One gather of the small results and an
  exact merge follow. The derivative, of any order and in both modes, is

    dmean = Σ dx / n,    dcomoment = 2 Σ (x - mean) dx.

  One collective moves both sums. The backward pass keeps `x` and arrays of the
  size of the mean.

  Args:
    x: Activations of any shape, floating.
    mask: None, or boolean and broadcastable against `x`. False leaves an
      activation out of the set; a hidden activation may be NaN.
    axes: Axes of `x` to pool; the pooled axes stay, with size 1.
    devices: Devices to pool over.
    centre: Whether deviations are from the mean. With False, deviations are
      from zero and the mean in the result is zero.
    groups: None, or the number of groups of neighbours on the last axis, which
      `axes` must not contain. Each group is pooled. The last axis keeps the
      size, and each place holds the moments of the group of the place. A single
      group leaves a last axis of size 1.

  Returns:
    The moments, in float32 or a wider type.
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
    # Every channel brings the count of the positions to the sum of the group.
    each = (*count.shape[:-1], x.shape[-1])
    count = _over_groups(jnp.broadcast_to(count, each), groups)
  x = wide(x)
  x = x if mask is None else apply_mask(mask, x)
  if not centre:
    total = add(x * x)
    return Moments(count, jnp.zeros_like(total), total)
  # A second pass with deviations from the mean avoids E x² - (E x)², whose
  # rounding error may exceed the variance for a mean far from zero.
  mean = add(x) / jnp.maximum(count, 1)
  deviation = x - mean
  deviation = deviation if mask is None else apply_mask(mask, deviation)
  return Moments(count, mean, add(deviation * deviation))


def _sum(x: jax.Array, axes: Axes, groups: int | None) -> jax.Array:
  """Sums over `axes`, kept with size 1, and over groups of the last axis."""
  total = x.sum(axes, keepdims=True)
  return total if groups is None else _over_groups(total, groups)


def _over_groups(total: jax.Array, groups: int) -> jax.Array:
  if groups == 1:
    return total.sum(-1, keepdims=True)
  cut = (*total.shape[:-1], groups, total.shape[-1] // groups)
  sums = meshes.whole_features(total).reshape(cut).sum(-1, keepdims=True)
  # A sum per channel broadcasts against the channels of `x`, as a sum per group
  # would not.
  sums = jnp.broadcast_to(sums, cut).reshape(total.shape)
  return meshes.cut_like(sums, total)


def count_kept(x, mask, axes) -> jax.Array:
  """Returns how many activations are in the set.

  Args:
    x: The activations.
    mask: None, or boolean and broadcastable against `x`.
    axes: The pooled axes.

  Returns:
    A float array with as many axes as `x`. Each axis has size 1 or the size of
    the mask.
  """
  dtype = wide_type(x)
  if mask is None:
    size = 1
    for axis in axes:
      size *= x.shape[axis]
    count = jnp.full((1,) * x.ndim, size, dtype)
    # A constant varies over no mesh axis. The mark gives the count the type of
    # a count that comes from a mask.
    return vary_like(count, x)
  mask = mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
  # A mask of size 1 on a pooled axis hides or keeps all places at once, so one
  # entry of the mask counts for all these places.
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
  # The backward pass would otherwise keep the deviation, as large as `x`.
  local = rematerialized(sums)(x, mask, moments.mean, tangents[0])
  # The deviations are from the mean of all devices, so plain sums over devices
  # merge the tangents exactly, and both sums share one collective.
  dsum, dcomoment = devices.total(*local)
  dmean = dsum / jnp.maximum(moments.count, 1)
  return moments, Moments(jnp.zeros_like(moments.count), dmean, dcomoment)


def _tangent_sums(x, mask, mean, dx, add, centre):
  # The term with dmean vanishes: the deviations from the mean sum to zero.
  dx = apply_mask(mask, wide(dx))
  deviation = apply_mask(mask, wide(x) - mean)
  dcomoment = 2 * add(deviation * dx)
  dsum = add(dx) if centre else jnp.zeros_like(dcomoment)
  return dsum, dcomoment
