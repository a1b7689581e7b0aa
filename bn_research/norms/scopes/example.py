"""The example itself: its features, groups of channels, or positions."""

import dataclasses
import math
from typing import Literal

import jax

from bn_research.norms import checks
from bn_research.norms.scopes.view import (
  Estimator,
  View,
  as_tuples,
  canonical_axes,
)
from bn_research.norms.statistics.collectives import (
  AxisNames,
  Devices,
  IndexGroups,
)
from bn_research.norms.statistics.moments import Axes, Moments, Shape

Pooled = int | Axes | Literal['features', 'positions', 'all']

# With at least so many positions it is quicker to pool them channel by channel
# and then the few sums of the channels of a group.
_MANY_POSITIONS = 8


@dataclasses.dataclass(frozen=True)
class Example:
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

  def features(self, shape: Shape) -> Shape:
    """Raises, because examples have no statistics in common to remember."""
    raise ValueError(
      f'a population remembers statistics that examples share; {self} shares '
      'none: leave the population out.'
    )

  def expand(self, leaf: jax.Array, shape: Shape) -> jax.Array:
    """Raises, as `features` does."""
    return leaf.reshape(self.features(shape))

  def view(self, x: jax.Array, map: Estimator) -> View:
    """Returns the view: channels in groups where no positions come first."""
    pooled = self._pooled(x.ndim)
    groups = self._groups(x, pooled)
    last = x.ndim - 1
    positions = tuple(a for a in pooled if a != last)
    if last not in pooled:
      return View(x.shape, pooled)
    if map.joint and groups > 1:
      # Of the channels of a group, one stands for the group at each place:
      # the groups are the features, and their members are pooled.
      return View(x.shape, pooled, (last, groups), outer_last=True)
    if math.prod(x.shape[a] for a in positions) >= _MANY_POSITIONS:
      return View(x.shape, positions)
    if groups == 1:
      return View(x.shape, pooled)
    return View(x.shape, (*positions, x.ndim), (last, groups))

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map: Estimator
  ) -> tuple[Moments, Moments]:
    """Returns moments of each example, twice: examples share none."""
    devices = Devices.along(self.axis_name, self.axis_index_groups)
    last = len(view.shape) - 1
    later = last in self._pooled(last + 1) and last not in view.axes
    groups = self._groups(x, (last,)) if later and view.cut is None else None
    moments = map.estimate(x, mask, view.axes, devices, groups)
    return moments, moments

  def _pooled(self, ndim: int) -> Axes:
    named = {
      'features': (ndim - 1,),
      'positions': tuple(range(1, ndim - 1)),
      'all': tuple(range(1, ndim)),
    }
    if isinstance(self.axes, str):
      return named[self.axes]
    return canonical_axes(self.axes, ndim)

  def _groups(self, x: jax.Array, pooled: Axes) -> int:
    """Number of groups of channels; 1 where channels are not pooled."""
    if self.num_groups is not None:
      name, given = 'num_groups', self.num_groups
    elif self.group_size is not None:
      name, given = 'group_size', self.group_size
    else:
      return 1
    if x.ndim - 1 not in pooled:
      raise ValueError(
        f'groups are of channels, and axes={self.axes} does not pool the last '
        'axis; add it, or leave num_groups and group_size out.'
      )
    channels = x.shape[-1]
    checks.divisor(channels, **{name: given})
    return given if name == 'num_groups' else channels // given
