"""The scope axis: which activations share statistics.

A scope sees activations through a `View`, in which at most one axis is cut in
two (rows into groups, or channels into groups) so that sharing statistics is
reducing over axes. It estimates the moments that normalize, and those of all
activations together, from which a population learns.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp

from bn_research.norms import collectives
from bn_research.norms.moments import Axes, Moments

Estimate = Callable[..., Moments]  # (x, mask, axes, names) -> Moments


@dataclasses.dataclass(frozen=True)
class View:
  """How a scope looks at activations: one axis cut in two, some axes pooled.

  Attributes:
    shape: Shape of the activations.
    cut: None, or the axis that is cut and the size of its outer part.
    axes: Axes pooled, counted in the view.
  """

  shape: tuple[int, ...]
  cut: tuple[int, int] | None
  axes: Axes

  def split(self, x: jax.Array) -> jax.Array:
    """Cuts anything that broadcasts against the activations."""
    x = x.reshape((1,) * (len(self.shape) - x.ndim) + x.shape)
    if self.cut is None:
      return x
    axis, outer = self.cut
    size = x.shape[axis]
    parts = (1, 1) if size == 1 else (outer, size // outer)
    return x.reshape(x.shape[:axis] + parts + x.shape[axis + 1 :])

  def join(self, x: jax.Array) -> jax.Array:
    """Undoes `split`."""
    return x.reshape(self.shape)


class Scope(Protocol):
  """Which activations share statistics."""

  def features(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of what is remembered of such activations."""
    ...

  def expand(self, leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Lets a remembered array broadcast against such activations."""
    ...

  def view(self, shape: tuple[int, ...]) -> View:
    """Returns the view of activations of that shape."""
    ...

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, estimate: Estimate
  ) -> tuple[Moments, Moments]:
    """Returns moments that normalize the view, and those of all activations."""
    ...


def canonical_axes(axes: int | Axes, ndim: int) -> Axes:
  """Returns `axes` as ascending, non-negative, distinct integers.

  Raises:
    ValueError: If an axis does not exist or is named twice.
  """
  axes = (axes,) if isinstance(axes, int) else tuple(axes)
  for axis in axes:
    if not -ndim <= axis < ndim:
      raise ValueError(
        f'axis {axis} does not exist in an array of {ndim} axes; use one of '
        f'{-ndim}..{ndim - 1}.'
      )
  canonical = sorted({axis % ndim for axis in axes})
  if len(canonical) != len(axes):
    raise ValueError(f'axes {axes} name an axis of {ndim} twice.')
  return tuple(canonical)


@dataclasses.dataclass(frozen=True)
class Batch:
  """The mini-batch: all examples and positions, feature by feature.

  It is the whole batch that the program sees: under jit over a mesh the whole
  global batch, under `shard_map` or `pmap` the device's own share unless
  `axis_name` pools them.

  Attributes:
    group_size: None, or the number of examples that share statistics: ghost
      batches, in the order of the rows, the last one with what remains.
    axis: Feature axes; every other axis is pooled.
    axis_name: Named mesh axes over which examples are spread.

  Source: Ioffe and Szegedy (2015), Section 3.2 for positions; Hoffer et al.
  (2017), Algorithm 1 for ghost batches.
  """

  group_size: int | None = None
  axis: int | Axes = -1
  axis_name: collectives.AxisNames = None

  def __post_init__(self):
    if self.group_size is not None and self.group_size < 1:
      raise ValueError(
        f'group_size={self.group_size} must be at least 1 example, or None '
        'for the whole batch.'
      )

  def features(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the sizes of the feature axes."""
    return tuple(shape[a] for a in canonical_axes(self.axis, len(shape)))

  def expand(self, leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Lets an array of the shape of the features broadcast."""
    features = canonical_axes(self.axis, len(shape))
    if features[-1] == len(shape) - 1 and len(features) == 1:
      return leaf.reshape((1,) * (len(shape) - 1) + leaf.shape)
    sizes = tuple(n if a in features else 1 for a, n in enumerate(shape))
    return leaf.reshape(sizes)

  def view(self, shape: tuple[int, ...]) -> View:
    """Returns the view: rows in blocks that no ghost batch cuts."""
    features = canonical_axes(self.axis, len(shape))
    pooled = tuple(a for a in range(len(shape)) if a not in features)
    if self.group_size is None:
      return View(shape, None, pooled)
    if 0 in features:
      raise ValueError(
        f'axis={self.axis} takes the examples (axis 0) for features; ghost '
        'batches group examples along axis 0.'
      )
    block = math.gcd(self.group_size, shape[0])
    shifted = tuple(a + 1 for a in pooled)
    return View(shape, (0, shape[0] // block), shifted)

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, estimate: Estimate
  ) -> tuple[Moments, Moments]:
    """Returns moments of each row's group, and of the whole batch."""
    names = collectives.axis_names(self.axis_name)
    collectives.require_bound(names)
    if view.cut is None:
      moments = estimate(x, mask, view.axes, names)
      return moments, moments
    blocks = estimate(x, mask, view.axes, ())
    return self._grouped(view, blocks, names)

  def _grouped(self, view, blocks, names):
    """Merges blocks to groups, and gives each block its group's moments."""
    own = blocks.mean.shape[0]
    block = view.shape[0] // own
    per_group = self.group_size // block
    start = 0
    whole = blocks = jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (own, *leaf.shape[1:])), blocks
    )
    if names:
      whole = jax.tree.map(
        lambda leaf: collectives.gather(leaf, names).reshape(
          (-1, *leaf.shape[1:])
        ),
        blocks,
      )
      if view.shape[0] % self.group_size:
        blocks, start = whole, collectives.position(names) * own
    groups = jax.tree.map(partial(_in_groups, size=per_group), blocks)
    merged = groups.merged(1)
    handed = jax.tree.map(
      partial(_to_blocks, size=per_group, start=start, count=own), merged
    )
    return handed, whole.merged(0)


def _in_groups(leaf: jax.Array, size: int) -> jax.Array:
  """(blocks, ...) to (groups, size, ...); empty blocks fill the last group."""
  lacking = -leaf.shape[0] % size
  padded = jnp.pad(leaf, ((0, lacking),) + ((0, 0),) * (leaf.ndim - 1))
  return padded.reshape((-1, size, *leaf.shape[1:]))


def _to_blocks(leaf: jax.Array, size: int, start, count: int) -> jax.Array:
  """(groups, 1, ...) to the `count` blocks from `start`, each its group's."""
  repeated = jnp.repeat(leaf[:, 0], size, axis=0)
  return jax.lax.dynamic_slice_in_dim(repeated, start, count)
