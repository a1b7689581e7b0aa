"""Helpers for `sweep()` of a config file: products, pairs, samples, seeds.

A grid is a list of points, and a point is a dict of changes by dotted key, as
`sweep()` returns them. Each helper takes grids, or values by key, and
returns a grid:

    from bn_research import experiment, grid

    def sweep():
      return grid.product(
        {'model.norm.name': ('none', 'batch_norm')},
        grid.sample(8, {'optimizer.learning_rate': grid.LogUniform(0.01, 1.0)}),
        grid.seeds(5),
      )

`bn_research.sweep` checks all points against the config before the first run
starts. The module does not import JAX, because a config must load fast.
"""

import builtins
import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from bn_research import ranges

Point = dict[str, Any]
Grid = list[Point]
# Values by key stand for the grid of all values, one key after the other.
Source = Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Any]]


def product(*sources: Source) -> Grid:
  """Returns every combination of the points of several grids.

  Args:
    *sources: Grids, or dicts of values by key. A dict with several keys stands
      for every combination of the values. The last grid changes fastest.

  Raises:
    ValueError: If a source is no grid, or if two grids change one key.
  """
  return [
    _joined(points) for points in itertools.product(*map(_points, sources))
  ]


def zip(*sources: Source) -> Grid:
  """Returns the first points of several grids together, the second, and so on.

  Args:
    *sources: Grids of one length, or dicts of values by key.

  Raises:
    ValueError: If a source is no grid, if the lengths differ, or if two grids
      change one key.
  """
  grids = [_points(source) for source in sources]
  lengths = [len(points) for points in grids]
  if len(set(lengths)) > 1:
    raise ValueError(f'zip() needs grids of one length, not {lengths}')
  return [_joined(points) for points in builtins.zip(*grids, strict=True)]


def chain(*sources: Source) -> Grid:
  """Returns the points of several grids, one grid after the other.

  Args:
    *sources: Grids, or dicts of values by key.

  Raises:
    ValueError: If a source is no grid.
  """
  return [dict(point) for source in sources for point in _points(source)]


def seeds(start: int, stop: int | None = None) -> Grid:
  """Returns a grid of the seeds `start` to `stop` - 1.

  Args:
    start: The first seed; the number of seeds from 0 if `stop` is None.
    stop: The seed after the last seed.

  Raises:
    ValueError: If there is no seed, or if a seed is negative.
  """
  first, end = (0, start) if stop is None else (start, stop)
  ranges.whole(0, 2**31 - 1, first=first, last=end - 1)
  if first >= end:
    raise ValueError(f'seeds({first}, {end}) is no seed')
  return [{'seed': seed} for seed in range(first, end)]


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Random values with equal density between two ends.

  Attributes:
    low: The least value.
    high: The largest value.
    digits: The significant digits of a value, because the value is a part of
      the name of a run.
  """

  low: float
  high: float
  digits: int = 3
  # The lower end is above this number.
  _above: ClassVar[float] = -math.inf

  def __post_init__(self):
    # The negated comparison also refuses NaN.
    if not self._above < self.low < self.high < math.inf:
      raise ValueError(
        f'low={self.low} and high={self.high} are no ends of a range'
      )
    ranges.whole(1, 17, digits=self.digits)

  def at(self, part: float) -> float:
    """Returns the value below which a part of all values is."""
    return self.rounded(self._exact(part))

  def rounded(self, value: float) -> float:
    """Returns a value with the digits of `digits`, between the ends."""
    short = float(f'{value:.{self.digits}g}')
    return min(max(short, self.low), self.high)

  def _exact(self, part: float) -> float:
    return self.low + part * (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class LogUniform(Uniform):
  """Random values whose logarithm has equal density between two ends.

  The attributes are those of `Uniform`, and `low` is above 0.
  """

  _above: ClassVar[float] = 0.0

  def _exact(self, part: float) -> float:
    return self.low * (self.high / self.low) ** part


@dataclasses.dataclass(frozen=True)
class Choice:
  """Random values out of a few values, each with the same probability.

  Attributes:
    values: The values.
  """

  values: Sequence[Any]

  def __post_init__(self):
    if isinstance(self.values, str) or not len(self.values):
      raise ValueError(f'Choice({self.values!r}) is no list of values')

  def at(self, part: float) -> Any:
    """Returns the value below which a part of all values is."""
    return self.values[int(part * len(self.values))]


Distribution = Uniform | Choice


def sample(
  number: int, distributions: Mapping[str, Distribution], seed: int = 0
) -> Grid:
  """Returns points with random values, a random search.

  The values of a key depend on the seed, on the key and on the place of the
  point only: a larger grid begins with the points of a smaller grid, and a
  further key changes no value of another key.

  Args:
    number: The number of points.
    distributions: The distribution of the values, by key.
    seed: The seed of the values.

  Raises:
    ValueError: If the number is not positive, or if a value is no distribution.

  Source: Bergstra and Bengio (2012).
  """
  ranges.whole(1, 10**6, number=number)
  check(distributions)
  # Python keeps the numbers of `random()` for a seed from version to version.
  streams = {key: random.Random(f'{seed}/{key}') for key in distributions}
  return [
    {key: distributions[key].at(streams[key].random()) for key in streams}
    for _ in range(number)
  ]


def check(distributions: Mapping[str, Any]) -> None:
  """Raises a ValueError if a value of a dict is no distribution."""
  for key, distribution in distributions.items():
    if not isinstance(distribution, Distribution):
      raise ValueError(
        f'there is {distribution!r} for {key!r}; give a Uniform, a LogUniform'
        ' or a Choice'
      )


def _points(source: Source) -> Grid:
  """Returns the points of a grid, or of a dict of values by key."""
  if isinstance(source, Mapping):
    for key, values in source.items():
      if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise ValueError(f'the grid has {values!r} for {key!r}; give a list')
    combinations = itertools.product(*source.values())
    return [
      dict(builtins.zip(source, values, strict=True)) for values in combinations
    ]
  points = [source] if isinstance(source, str) else list(source)
  for point in points:
    if not isinstance(point, Mapping):
      raise ValueError(f'{point!r} is no point of a grid; give a dict')
  return [dict(point) for point in points]


def _joined(points: Iterable[Point]) -> Point:
  joined: Point = {}
  for point in points:
    for key in point:
      if key in joined:
        raise ValueError(f'two grids change {key!r}')
    joined |= point
  return joined
