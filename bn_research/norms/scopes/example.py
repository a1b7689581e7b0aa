"""The example itself: its features, groups of channels, or positions."""

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
)
from bn_research.norms.statistics.moments import Axes, Moments, Shape
from bn_research.norms.statistics.views import View, as_tuples, canonical_axes

Pooled = int | Axes | Literal['features', 'positions', 'all']

# With at least so many positions it is quicker to pool first the positions of
# each channel and then the few sums of the channels of a group.
_MANY_POSITIONS = 8


@dataclasses.dataclass(frozen=True)
class Example(Scope):
  """One example at a time; nothing of another takes part.

  Attributes:
    axes: What is pooled: 'features', the last axis (layer and RMS norm, at
      each position apart); 'positions', all axes but the first and the last
      (instance norm); 'all' but the first (layer norm of an image, group
      norm); or axes by number.
    num_groups: Into how many groups of neighbours the last axis is divided,
      each with statistics of its own.
    group_size: Instead of `num_groups`, the channels of a group.
    axis_name: Named mesh axes over which the pooled axes are spread.
    axis_index_groups: Groups of devices that pool among themselves (`pmap`).

  Source: Ba et al. (2016); Ulyanov et al. (2016); Wu and He (2018).
  """

  shares: ClassVar[bool] = False

  axes: Pooled = 'features'
  num_groups: int | None = None
  group_size: int | None = None
  axis_name: AxisNames = None
  axis_index_groups: IndexGroups = None

  def __post_init__(self):
    for name in ('axes', 'axis_name', 'axis_index_groups'):
      object.__setattr__(self, name, as_tuples(getattr(self, name)))
    if self.num_groups is not None and self.group_size is not None:
      raise ValueError(
        f'num_groups={self.num_groups} and group_size={self.group_size} were '
        'both given; give one and set the other to None.'
      )

  def objection(self, normalization: Any) -> str | None:
    """Returns what does not fit: a population, or a map of joint features."""
    if normalization.population is not None:
      return (
        'a population remembers statistics that examples share; '
        f'{self} shares none: leave {normalization.population} out.'
      )
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
    """Whether a covariance of features, or of groups of them, is left."""
    is_grouped = self.num_groups is not None or self.group_size is not None
    if is_grouped or self.axes == 'positions':
      return True
    # The number of axes is not known yet: a positive axis may be the last.
    return not isinstance(self.axes, str) and -1 not in _as_tuple(self.axes)

  def view(self, x: jax.Array, map_: Map) -> View:
    """Returns the view: channels in groups where no positions come first."""
    pooled = self._pooled(x.shape)
    groups = self._groups(x.shape, pooled)
    last = x.ndim - 1
    positions = tuple(a for a in pooled if a != last)
    if last not in pooled:
      return View(x.shape, pooled)
    if map_.joint and groups > 1:
      # Of the channels of a group, one stands for the group at each place:
      # the groups are the features, and their members are pooled.
      return View(x.shape, pooled, (last, groups), outer_last=True)
    if map_.ordinary and _are_many(x.shape, positions):
      return View(x.shape, positions)
    if groups == 1:
      return View(x.shape, pooled)
    return View(x.shape, (*positions, x.ndim), (last, groups))

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map_: Map
  ) -> tuple[Moments, Moments]:
    """Returns moments of each example, twice: examples share none."""
    devices = Devices.along(self.axis_name, self.axis_index_groups)
    last = len(view.shape) - 1
    pooled = self._pooled(view.shape)
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
    """Number of groups of channels; 1 where channels are not pooled."""
    if self.num_groups is not None:
      name, given = 'num_groups', self.num_groups
    elif self.group_size is not None:
      name, given = 'group_size', self.group_size
    else:
      return 1
    if len(shape) - 1 not in pooled:
      raise ValueError(
        f'groups are of channels, and axes={self.axes} does not pool the last '
        'axis; add it, or leave num_groups and group_size out.'
      )
    channels = shape[-1]
    checks.divisor(channels, **{name: given})
    return given if name == 'num_groups' else channels // given


def _as_tuple(axes: int | Axes) -> Axes:
  return (axes,) if isinstance(axes, int) else tuple(axes)


def _are_many(shape: Shape, positions: Axes) -> bool:
  """Whether there are many positions; a symbol of `jax.export` says yes."""
  sizes = [shape[a] for a in positions]
  is_known = all(isinstance(size, int) for size in sizes)
  return not is_known or math.prod(sizes) >= _MANY_POSITIONS
