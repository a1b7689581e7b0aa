"""The example scope: features, groups of channels, or positions of a row."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax

from bn_research.norms import checks
from bn_research.norms.axes import Map, Scope
from bn_research.norms.scopes.pooling import estimate_over_devices
from bn_research.norms.statistics.collectives import (
  AxisNames,
  Devices,
  IndexGroups,
  require_names,
)
from bn_research.norms.statistics.moments import Axes, Moments, Shape
from bn_research.norms.statistics.views import View, as_tuples, canonical_axes

Pooled = int | Axes | Literal['features', 'positions', 'all']

# From this number of positions on, two steps are faster than one reduction:
# first sum the positions of each channel, then sum the channels of each group.
_MANY_POSITIONS = 8


@dataclasses.dataclass(frozen=True)
class Example(Scope):
  """One example at a time: no other example affects the statistics.

  Attributes:
    axes: The pooled axes. 'features' pools the last axis, separately at each
      position (layer and RMS norm). 'positions' pools all axes except the first
      and the last (instance norm). 'all' pools all axes except the first (layer
      norm of an image, group norm). Integers select axes by number.
    num_groups: None, or the number of groups of neighbouring channels. Each
      group has separate statistics.
    group_size: None, or the number of channels in a group. `num_groups` and
      `group_size` exclude each other.
    axis_name: Names of the mesh axes over which the pooled axes are spread.
    axis_index_groups: Groups of device indices; each group pools alone. Only
      `pmap` supports index groups.

  Source: Ba et al. (2016); Ulyanov et al. (2016); Wu and He (2018).
  """

  shares: ClassVar[bool] = False

  axes: Pooled = 'features'
  num_groups: int | None = None
  group_size: int | None = None
  axis_name: AxisNames = None
  axis_index_groups: IndexGroups = None

  def __post_init__(self):
    # Configs give lists. Tuples are hashable, as a static value of jit must be.
    for name in ('axes', 'axis_name', 'axis_index_groups'):
      object.__setattr__(self, name, as_tuples(getattr(self, name)))
    require_names(self.axis_name, self.axis_index_groups)
    if self.num_groups is not None and self.group_size is not None:
      raise ValueError(
        f'num_groups={self.num_groups} and group_size={self.group_size} were '
        'both given; set num_groups or group_size to None.'
      )

  def objection(self, normalization: Any) -> str | None:
    """Returns the sentence on a map that does not fit."""
    map_ = normalization.map
    if map_.joint and not self._keeps_features:
      return (
        f'{map_} needs the covariance of features, and {self} pools the '
        'features; take a scope that keeps the last axis, such as Batch() or '
        "Example('positions'), or divide the features by num_groups."
      )
    return None

  @property
  def _keeps_features(self) -> bool:
    """Whether features, or groups of features, remain for a covariance."""
    is_grouped = self.num_groups is not None or self.group_size is not None
    if is_grouped or self.axes == 'positions':
      return True
    # The number of axes of `x` is unknown here, and a positive number may name
    # the last axis. Only -1 is surely the last axis; `Whiten.estimate` raises
    # for the rest.
    return not isinstance(self.axes, str) and -1 not in _as_tuple(self.axes)

  def view(self, x: jax.Array, map_: Map) -> View:
    """Returns the view: channels in groups, or only positions pooled."""
    pooled = self._pooled(x.shape)
    groups = self._groups(x.shape, pooled)
    last = x.ndim - 1
    positions = tuple(a for a in pooled if a != last)
    # A statistic without a merge needs all activations of a set at once. Most
    # functions of JAX, such as `jnp.median`, also refuse cut arrays.
    is_whole = not map_.merges
    if last not in pooled:
      return View(x.shape, pooled, is_whole=is_whole)
    if map_.joint and groups > 1:
      # In group whitening the groups are the features, and the channels inside
      # a group are samples. The axis of groups must therefore come last, and
      # the view pools the axis of the channels inside a group.
      return View(x.shape, pooled, (last, groups), True, is_whole=is_whole)
    # Only sums can be taken in two steps; a median of medians, for example, is
    # no median. `moments` recognizes this case by the axes of the view.
    if map_.ordinary and _are_many(x.shape, positions):
      return View(x.shape, positions)
    if groups == 1:
      return View(x.shape, pooled, is_whole=is_whole)
    inner = (*positions, x.ndim)
    return View(x.shape, inner, (last, groups), is_whole=is_whole)

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map_: Map
  ) -> tuple[Moments, Moments]:
    """Returns the moments of each example, as both results."""
    devices = Devices.along(self.axis_name, self.axis_index_groups)
    last = len(view.shape) - 1
    pooled = self._pooled(view.shape)
    # The two-step case of `view`: the scope pools the last axis, but the view
    # pools only positions. The estimate then sums over the groups of channels.
    if view.cut is None and last in pooled and last not in view.axes:
      groups = self._groups(view.shape, pooled)
      moments = map_.estimate(x, mask, view.axes, devices, groups)
    else:
      moments = estimate_over_devices(map_, x, mask, view.axes, devices)
    return moments, moments

  def _pooled(self, shape: Shape) -> Axes:
    ndim = len(shape)
    named = {
      'features': (ndim - 1,),
      'positions': tuple(range(1, ndim - 1)),
      'all': tuple(range(1, ndim)),
    }
    if not isinstance(self.axes, str):
      return canonical_axes(self.axes, ndim)
    if self.axes != 'features' and ndim < 2:
      raise ValueError(
        f'x of shape {shape} has no batch axis; give (batch, ..., features), '
        'for one example x[None].'
      )
    return named[self.axes]

  def _groups(self, shape: Shape, pooled: Axes) -> int:
    """Returns the number of groups of channels; 1 without an option."""
    if self.num_groups is not None:
      name, given = 'num_groups', self.num_groups
    elif self.group_size is not None:
      name, given = 'group_size', self.group_size
    else:
      return 1
    if len(shape) - 1 not in pooled:
      raise ValueError(
        f'groups are of channels, and axes={self.axes} does not pool the last '
        'axis; add the last axis, or leave num_groups and group_size out.'
      )
    channels = shape[-1]
    checks.divisor(channels, **{name: given})
    return given if name == 'num_groups' else channels // given


def _as_tuple(axes: int | Axes) -> Axes:
  return (axes,) if isinstance(axes, int) else tuple(axes)


def _are_many(shape: Shape, positions: Axes) -> bool:
  """Returns whether the positions are many; True for a symbolic size."""
  sizes = [shape[a] for a in positions]
  is_known = all(isinstance(size, int) for size in sizes)
  return not is_known or math.prod(sizes) >= _MANY_POSITIONS
