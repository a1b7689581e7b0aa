"""The mini-batch: whole, in ghost groups, on one device or many."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

from bn_research.norms.scopes.view import (
  Estimator,
  View,
  as_tuples,
  canonical_axes,
)
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
  as_one,
  gathered,
)


@dataclasses.dataclass(frozen=True)
class Batch:
  """The mini-batch: all examples and positions, feature by feature.

  It is the whole batch that the program sees: under jit over a mesh the whole
  global batch; under `shard_map` or `pmap` the device's own share, unless
  `axis_name` pools them.

  Attributes:
    group_size: None, or the number of examples that share statistics: ghost
      batches, in the order of the rows, the last one with what remains.
    axis: Feature axes; every other axis is pooled.
    axis_name: Named mesh axes over which examples are spread.
    axis_index_groups: Groups of devices that pool among themselves; only
      `pmap` has them. Elsewhere cut the mesh axis in two and name one.

  Source: Ioffe and Szegedy (2015), Section 3.2 for positions; Hoffer et al.
  (2017), Algorithm 1 for ghost batches.
  """

  group_size: int | None = None
  axis: int | Axes = -1
  axis_name: AxisNames = None
  axis_index_groups: IndexGroups = None

  def __post_init__(self):
    for name in ('axis', 'axis_name', 'axis_index_groups'):
      object.__setattr__(self, name, as_tuples(getattr(self, name)))
    if self.group_size is not None and self.group_size < 1:
      raise ValueError(
        f'group_size={self.group_size} must be at least 1 example, or None '
        'for the whole batch.'
      )

  def features(self, shape: Shape) -> Shape:
    """Returns the sizes of the feature axes."""
    return tuple(shape[a] for a in canonical_axes(self.axis, len(shape)))

  def expand(self, leaf: jax.Array, shape: Shape) -> jax.Array:
    """Lets an array of the shape of the features broadcast."""
    features = canonical_axes(self.axis, len(shape))
    if features == (len(shape) - 1,):
      return leaf.reshape((1,) * (len(shape) - 1) + leaf.shape)
    return leaf.reshape(
      [size if a in features else 1 for a, size in enumerate(shape)]
    )

  def view(self, x: jax.Array, map: Estimator) -> View:
    """Returns the view: rows in blocks that no group or device boundary cuts.

    Where that leaves one block there is no cut.
    """
    features = canonical_axes(self.axis, x.ndim)
    pooled = tuple(a for a in range(x.ndim) if a not in features)
    rows = x.shape[0]
    if 0 in features:
      if self.group_size:
        raise ValueError(
          f'axis={self.axis} makes features of axis 0; group_size needs the '
          'examples there.'
        )
      return View(x.shape, pooled)
    shards = meshes.num_shards(x)
    if self.group_size is None and shards == 1:
      return View(x.shape, pooled)
    block = math.gcd(rows // shards, self.group_size or rows)
    if block == rows and (self.axis_name is None or self.group_size is None):
      return View(x.shape, pooled)
    return View(x.shape, tuple(a + 1 for a in pooled), (0, rows // block))

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map: Estimator
  ) -> tuple[Moments, Moments]:
    """Returns moments of each row's group, and of the whole batch."""
    devices = Devices.along(self.axis_name, self.axis_index_groups)
    if view.cut is None:
      moments = map.estimate(x, mask, view.axes, devices)
      return moments, moments
    blocks = map.estimate(x, mask, view.axes, Devices())
    blocks = as_one(meshes.everywhere, blocks)
    whole = gathered(blocks, devices).merged(0)
    if self.group_size is None:
      return whole, whole
    return self._of_groups(view, blocks, devices), whole

  def _of_groups(self, view, blocks, devices) -> Moments:
    """Merges blocks to groups, and gives each block its group's moments."""
    own = view.cut[1]
    per_group = self.group_size * own // view.shape[0]
    first = 0
    if devices.names and own % per_group:  # groups span devices
      blocks, first = gathered(blocks, devices), devices.position() * own
    groups = jax.tree.map(partial(_in_groups, size=per_group), blocks)
    hand_back = partial(_to_blocks, size=per_group, first=first, count=own)
    return as_one(meshes.everywhere, jax.tree.map(hand_back, groups.merged(1)))


def _in_groups(leaf: jax.Array, size: int) -> jax.Array:
  """(blocks, ...) to (groups, size, ...); empty blocks fill the last group."""
  lacking = -leaf.shape[0] % size
  padded = jnp.pad(leaf, ((0, lacking),) + ((0, 0),) * (leaf.ndim - 1))
  return padded.reshape((-1, size, *leaf.shape[1:]))


def _to_blocks(leaf: jax.Array, size: int, first, count: int) -> jax.Array:
  """(groups, 1, ...) to the `count` blocks from `first`, each its group's."""
  repeated = jnp.repeat(leaf[:, 0], size, axis=0)
  return jax.lax.dynamic_slice_in_dim(repeated, first, count)
