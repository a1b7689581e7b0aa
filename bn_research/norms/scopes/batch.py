"""The mini-batch scope: whole or in ghost groups, on any number of devices."""

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
  ONE_DEVICE,
  AxisNames,
  Devices,
  IndexGroups,
  require_names,
)
from bn_research.norms.statistics.moments import (
  Axes,
  Moments,
  Shape,
  gathered,
  move_as_one_array,
)
from bn_research.norms.statistics.views import View, as_tuples, canonical_axes

DEVICE = 'device'
"""The size of groups that are the rows of each device."""

GroupSize = int | str | None
"""A number of rows, `DEVICE`, or None for all rows."""


@dataclasses.dataclass(frozen=True)
class Batch(Scope):
  """The mini-batch: all examples and positions, feature by feature.

  The scope pools the whole batch that the program sees. Under jit over a mesh
  the program sees the global batch. Under `shard_map` or `pmap` the program
  sees the share of one device, unless `axis_name` pools the shares.

  Attributes:
    group_size: None for the whole batch, or the number of examples that share
      statistics. Consecutive rows form a group, called a ghost batch. The last
      group holds the remaining rows. `'device'` for the rows of each device, in
      every form of program: the numbers then depend on the number of devices.
    axis: Feature axes. The scope pools every other axis.
    axis_name: Names of the mesh axes over which the examples are spread.
    axis_index_groups: Groups of device indices; each group pools alone. Only
      `pmap` supports index groups. Elsewhere, cut the mesh axis in two and name
      one half.

  Source: Ioffe and Szegedy (2015), Section 3.2 for positions; Hoffer et al.
  (2017), Algorithm 1 for ghost batches.
  """

  group_size: GroupSize = None
  axis: int | Axes = -1
  axis_name: AxisNames = None
  axis_index_groups: IndexGroups = None

  def __post_init__(self):
    # Configs give lists. Tuples are hashable, as a static value of jit must be.
    for name in ('axis', 'axis_name', 'axis_index_groups'):
      value = getattr(self, name)
      if value is not None and not isinstance(value, int | str):
        object.__setattr__(self, name, as_tuples(value))
    require_names(self.axis_name, self.axis_index_groups)
    size = self.group_size
    if isinstance(size, str):
      is_right = size == DEVICE
    else:
      is_right = size is None or size >= 1
    if not is_right:
      raise ValueError(
        f'group_size={size!r} must be at least 1 example, {DEVICE!r} for the'
        ' examples of each device, or None for the whole batch.'
      )

  def objection(self, normalization: Any) -> str | None:
    """Returns the sentence on a misfit of feature axes or of device groups."""
    map_ = normalization.map
    if map_.joint and self.axis not in (-1, (-1,)):
      return (
        f'{map_} takes features together and needs the features on the last '
        f'axis; Batch has axis={self.axis}: move the features to the last axis.'
      )
    grouped = self.group_size is not None and self.axis_name is not None
    if grouped and not map_.merges:
      return (
        f'the statistics of {map_} do not merge, so Batch cannot pool groups of'
        f' group_size={self.group_size} over axis_name={self.axis_name}; give '
        'group_size or axis_name but not both, or give the map a merge.'
      )
    return None

  def over_devices(self, axis_name: str) -> 'Batch':
    """Returns the scope with a name of devices, unless it has a name."""
    if self.axis_name is not None:
      return self
    return dataclasses.replace(self, axis_name=axis_name)

  def features(self, shape: Shape) -> Shape:
    """Returns the sizes of the feature axes."""
    axes = canonical_axes(self.axis, len(shape))
    return tuple(map(shape.__getitem__, axes))

  def expand(self, leaf: jax.Array, shape: Shape) -> jax.Array:
    """Reshapes an array of the shape of the features, to broadcast."""
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
    # Moments of blocks inside a device need no communication. The blocks are
    # small, so one collective can move all blocks afterwards.
    features = canonical_axes(self.axis, x.ndim)
    pooled = tuple(sorted(set(range(x.ndim)).difference(features)))
    # Statistics without a merge need all rows of a group in one estimate. A cut
    # at device boundaries would leave only parts of a group.
    is_whole = not map_.merges
    if 0 in features:
      if self.group_size:
        raise ValueError(
          f'axis={self.axis} makes features of axis 0; group_size needs the '
          'examples on axis 0: move the features to another axis.'
        )
      return View(x.shape, pooled, is_whole=is_whole)
    shards = 1 if is_whole else meshes.num_shards(x)
    group_size = self._num_rows(x)
    if group_size is None and shards == 1:
      return View(x.shape, pooled, is_whole=is_whole)
    # With named devices a group may continue on the next device. Padding would
    # then separate rows of one group, so this case needs small blocks too.
    spans_devices = group_size is not None and self.axis_name is not None
    is_one_group = _is_at_least(group_size, x.shape[0])
    if shards == 1 and is_one_group and not spans_devices:
      return View(x.shape, pooled, is_whole=is_whole)
    # The cut turns axis 0 into two axes, so each pooled axis moves up by one.
    within = tuple(a + 1 for a in pooled)
    if shards == 1 and not spans_devices:
      size: Any = group_size
      # Rounds up. The form with two minus signs also takes a symbolic size.
      groups = -(-x.shape[0] // size)
      padding = groups * size - x.shape[0]
      cut = (0, groups)
      return View(x.shape, within, cut, False, padding, is_whole)
    # The largest block size that divides the rows of a device and a group.
    size = math.gcd(x.shape[0] // shards, group_size or x.shape[0])
    return View(x.shape, within, (0, x.shape[0] // size))

  def _num_rows(self, x: jax.Array) -> int | None:
    """Returns the number of rows of a group; None for the whole batch."""
    if not isinstance(self.group_size, str):
      return self.group_size
    shards = meshes.num_shards(x)
    is_alone = shards == 1 and self.axis_name is None
    return None if is_alone else x.shape[0] // shards

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map_: Map
  ) -> tuple[Moments, Moments]:
    """Returns the moments of each group, and of the whole batch."""
    if self.axis_name is None and view.cut is None:
      moments = map_.estimate(x, mask, view.axes, ONE_DEVICE)
      return moments, moments
    devices = Devices.along(self.axis_name, self.axis_index_groups)
    if view.cut is None:
      moments = estimate_over_devices(map_, x, mask, view.axes, devices)
      return moments, moments
    if not map_.merges:
      return _moments_without_merge(view, x, mask, map_)
    blocks = map_.estimate(x, mask, view.axes, ONE_DEVICE)
    # One collective for count, mean and co-moment. Afterwards every device
    # holds all blocks, and the merges below need no communication.
    blocks = move_as_one_array(meshes.everywhere, blocks)
    whole = map_.merge(gathered(blocks, devices), 0)
    if self.group_size is None:
      return whole, whole
    # The rows of a device are one block.
    blocks_per_group = (
      1 if isinstance(self.group_size, str) else self.group_size // x.shape[1]
    )
    if blocks_per_group == 1:
      return blocks, whole
    return self._of_groups(view, blocks, devices, blocks_per_group, map_), whole

  def _of_groups(self, view, blocks, devices, blocks_per_group, map_):
    """Merges blocks into groups, and gives each block the group's moments."""
    num_blocks = view.cut[1]
    first = 0
    # A device that holds only whole groups needs no block of another device.
    if devices.names and num_blocks % blocks_per_group:
      blocks = gathered(blocks, devices)
      first = devices.position() * num_blocks
    groups = jax.tree.map(partial(_in_groups, size=blocks_per_group), blocks)
    hand_back = partial(
      _to_blocks, size=blocks_per_group, first=first, count=num_blocks
    )
    merged = map_.merge(groups, 1)
    return move_as_one_array(meshes.everywhere, jax.tree.map(hand_back, merged))


def _moments_without_merge(view, x, mask, map_) -> tuple[Moments, Moments]:
  """Estimates the moments of each group and of the whole batch.

  A user-defined statistic may ignore masks. The function therefore cuts off the
  padding of the last group, instead of hiding the padding with a mask.
  """
  # Axis 0 of the view counts groups, so the joined array has one axis fewer.
  joined_mask = None if mask is None else view.spread(mask)
  pooled = tuple(a - 1 for a in view.axes)
  whole = map_.estimate(view.join(x), joined_mask, pooled, ONE_DEVICE)
  whole = jax.tree.map(lambda leaf: leaf[None], whole)
  if not view.padding:
    return map_.estimate(x, mask, view.axes, ONE_DEVICE), whole
  # The last group has fewer rows, hence another shape and a second estimate.
  rest = x.shape[1] - view.padding
  full = map_.estimate(
    x[:-1], None if mask is None else mask[:-1], view.axes, ONE_DEVICE
  )
  last = map_.estimate(
    x[-1:, :rest],
    None if mask is None else mask[-1:, :rest],
    view.axes,
    ONE_DEVICE,
  )
  both = map(_with_count_of_each, (full, last))
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *both), whole


def _with_count_of_each(groups: Moments) -> Moments:
  # Groups of one size share one count. The last group has another count, so the
  # concatenation needs a count for each group.
  shape = (groups.mean.shape[0], *groups.count.shape[1:])
  return groups._replace(count=jnp.broadcast_to(groups.count, shape))


def _is_at_least(size: int | None, rows: int) -> bool:
  """Returns whether one group holds all rows.

  The answer is False for a symbolic number of rows, as `jax.export` gives.
  """
  return size is None or (isinstance(rows, int) and size >= rows)


def _in_groups(leaf: jax.Array, size: int) -> jax.Array:
  """Reshapes (blocks, ...) to (groups, size, ...).

  Empty blocks fill the last group. A count of zero adds nothing to a merge.
  """
  lacking = -leaf.shape[0] % size
  padded = jnp.pad(leaf, ((0, lacking),) + ((0, 0),) * (leaf.ndim - 1))
  return padded.reshape((-1, size, *leaf.shape[1:]))


def _to_blocks(leaf: jax.Array, size: int, first, count: int) -> jax.Array:
  """Repeats (groups, 1, ...) for each block, and takes `count` from `first`."""
  repeated = jnp.repeat(leaf[:, 0], size, axis=0)
  return jax.lax.dynamic_slice_in_dim(repeated, first, count)
