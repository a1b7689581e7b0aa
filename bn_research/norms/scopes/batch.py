"""The mini-batch: whole, in ghost groups, on one device or many."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bn_research.norms.axes import Map, Scope
from bn_research.norms.scopes.pooling import estimate_over_devices
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.collectives import (
  AxisNames,
  Devices,
  IndexGroups,
)
from bn_research.norms.statistics.moments import (
  Axes,
  Moments,
  Shape,
  gathered,
  move_as_one_array,
)
from bn_research.norms.statistics.views import View, as_tuples, canonical_axes


@dataclasses.dataclass(frozen=True)
class Batch(Scope):
  """The mini-batch: all examples and positions, feature by feature.

  The mini-batch is the whole batch that the program sees. Under jit over a mesh
  the program sees the whole global batch; under `shard_map` or `pmap` it sees
  the share of the device, unless `axis_name` pools the shares.

  Attributes:
    group_size: None, or the number of examples that share statistics: ghost
      batches, in the order of the rows. The last group has the rows that
      remain.
    axis: Feature axes; every other axis is pooled.
    axis_name: Named mesh axes over which examples are spread.
    axis_index_groups: Groups of devices that pool among themselves. Only `pmap`
      has such groups; elsewhere, cut the mesh axis in two and name one half.

  Source: Ioffe and Szegedy (2015), Section 3.2 for positions; Hoffer et al.
  (2017), Algorithm 1 for ghost batches.
  """

  group_size: int | None = None
  axis: int | Axes = -1
  axis_name: AxisNames = None
  axis_index_groups: IndexGroups = None

  def __post_init__(self):
    for name in ('axis', 'axis_name', 'axis_index_groups'):
      value = getattr(self, name)
      if value is not None and not isinstance(value, int | str):
        object.__setattr__(self, name, as_tuples(value))
    if self.group_size is not None and self.group_size < 1:
      raise ValueError(
        f'group_size={self.group_size} must be at least 1 example, or None '
        'for the whole batch.'
      )

  def objection(self, normalization: Any) -> str | None:
    """Returns what does not fit: features on other axes, groups of devices."""
    map_ = normalization.map
    if map_.joint and self.axis not in (-1, (-1,)):
      return (
        f'{map_} takes features together and needs the features on the last '
        f'axis; Batch has axis={self.axis}: move the features there.'
      )
    grouped = self.group_size is not None and self.axis_name is not None
    if grouped and not map_.merges:
      return (
        f'the statistics of {map_} do not merge, so Batch cannot pool groups of'
        f' group_size={self.group_size} over axis_name={self.axis_name}; leave '
        'one of the two out, or give the map a merge.'
      )
    return None

  def features(self, shape: Shape) -> Shape:
    """Returns the sizes of the feature axes."""
    axes = canonical_axes(self.axis, len(shape))
    return tuple(map(shape.__getitem__, axes))

  def expand(self, leaf: jax.Array, shape: Shape) -> jax.Array:
    """Lets an array of the shape of the features broadcast."""
    features = canonical_axes(self.axis, len(shape))
    if features == (len(shape) - 1,):
      return leaf.reshape((1,) * (len(shape) - 1) + leaf.shape)
    return leaf.reshape(
      [size if a in features else 1 for a, size in enumerate(shape)]
    )

  def view(self, x: jax.Array, map_: Map) -> View:
    """Returns the view: rows in blocks that no group or device boundary cuts.

    On one shard a block is a whole group, and padding fills the last group.
    """
    features = canonical_axes(self.axis, x.ndim)
    pooled = tuple(sorted(set(range(x.ndim)).difference(features)))
    if 0 in features:
      if self.group_size:
        raise ValueError(
          f'axis={self.axis} makes features of axis 0; group_size needs the '
          'examples there.'
        )
      return View(x.shape, pooled)
    # What does not merge is estimated from all rows of a group at once.
    is_apart = not map_.merges
    shards = 1 if is_apart else meshes.num_shards(x)
    if self.group_size is None and shards == 1:
      return View(x.shape, pooled, rows_together=is_apart)
    # Groups of rows may span named devices.
    spans_devices = self.group_size is not None and self.axis_name is not None
    is_one_group = _is_at_least(self.group_size, x.shape[0])
    if shards == 1 and is_one_group and not spans_devices:
      return View(x.shape, pooled, rows_together=is_apart)
    within = tuple(a + 1 for a in pooled)
    if shards == 1 and not spans_devices:
      size: Any = self.group_size
      groups = -(-x.shape[0] // size)
      padding = groups * size - x.shape[0]
      cut = (0, groups)
      return View(x.shape, within, cut, False, padding, is_apart)
    size = math.gcd(x.shape[0] // shards, self.group_size or x.shape[0])
    return View(x.shape, within, (0, x.shape[0] // size))

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map_: Map
  ) -> tuple[Moments, Moments]:
    """Returns moments of each row's group, and of the whole batch."""
    if self.axis_name is None and view.cut is None:
      moments = map_.estimate(x, mask, view.axes, _ALONE)
      return moments, moments
    devices = Devices.along(self.axis_name, self.axis_index_groups)
    if view.cut is None:
      moments = estimate_over_devices(map_, x, mask, view.axes, devices)
      return moments, moments
    if not map_.merges:
      return _moments_of_apart_groups(view, x, mask, map_)
    blocks = map_.estimate(x, mask, view.axes, _ALONE)
    blocks = move_as_one_array(meshes.everywhere, blocks)
    whole = map_.merge(gathered(blocks, devices), 0)
    if self.group_size is None:
      return whole, whole
    blocks_per_group = self.group_size // x.shape[1]
    if blocks_per_group == 1:
      return blocks, whole
    return self._of_groups(view, blocks, devices, blocks_per_group, map_), whole

  def _of_groups(self, view, blocks, devices, blocks_per_group, map_):
    """Merges blocks to groups, and gives each block its group's moments."""
    num_blocks = view.cut[1]
    first = 0
    # A device that holds whole groups only needs no block of another device.
    if devices.names and num_blocks % blocks_per_group:
      blocks = gathered(blocks, devices)
      first = devices.position() * num_blocks
    groups = jax.tree.map(partial(_in_groups, size=blocks_per_group), blocks)
    hand_back = partial(
      _to_blocks, size=blocks_per_group, first=first, count=num_blocks
    )
    merged = map_.merge(groups, 1)
    return move_as_one_array(meshes.everywhere, jax.tree.map(hand_back, merged))


_ALONE = Devices()


def _moments_of_apart_groups(view, x, mask, map_) -> tuple[Moments, Moments]:
  """Estimates each group, the smaller last group too, and the whole batch.

  A statistic of one's own may not know of masks. The padding of the last group
  is therefore cut off instead of hidden.
  """
  joined_mask = None if mask is None else view.spread(mask)
  pooled = tuple(a - 1 for a in view.axes)
  whole = map_.estimate(view.join(x), joined_mask, pooled, _ALONE)
  whole = jax.tree.map(lambda leaf: leaf[None], whole)
  if not view.padding:
    return map_.estimate(x, mask, view.axes, _ALONE), whole
  rest = x.shape[1] - view.padding
  full = map_.estimate(
    x[:-1], None if mask is None else mask[:-1], view.axes, _ALONE
  )
  last = map_.estimate(
    x[-1:, :rest], None if mask is None else mask[-1:, :rest], view.axes, _ALONE
  )
  both = map(_with_count_of_each, (full, last))
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *both), whole


def _with_count_of_each(groups: Moments) -> Moments:
  shape = (groups.mean.shape[0], *groups.count.shape[1:])
  return groups._replace(count=jnp.broadcast_to(groups.count, shape))


def _is_at_least(size: int | None, rows: int) -> bool:
  """Whether one group holds all rows; False for a symbol of `jax.export`."""
  return size is None or (isinstance(rows, int) and size >= rows)


def _in_groups(leaf: jax.Array, size: int) -> jax.Array:
  """(blocks, ...) to (groups, size, ...); empty blocks fill the last group."""
  lacking = -leaf.shape[0] % size
  padded = jnp.pad(leaf, ((0, lacking),) + ((0, 0),) * (leaf.ndim - 1))
  return padded.reshape((-1, size, *leaf.shape[1:]))


def _to_blocks(leaf: jax.Array, size: int, first, count: int) -> jax.Array:
  """(groups, 1, ...) to the `count` blocks from `first`, each its group's."""
  repeated = jnp.repeat(leaf[:, 0], size, axis=0)
  return jax.lax.dynamic_slice_in_dim(repeated, first, count)
