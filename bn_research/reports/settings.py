"""A panel of a measure as a function of a setting in which the runs differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bn_research import errors
from bn_research.reports import drawing, measures
from bn_research.reports.drawing import Limits, Series
from bn_research.results import Run

# A fraction of the width. Without a margin, the edge of the panel would cut a
# marker in half.
_MARGIN = 0.03

Numbers = dict[float, dict[int, float]]  # setting to seed to number


@dataclasses.dataclass(frozen=True)
class Settings:
  """A panel of a measure as a function of a setting in which the runs differ.

  Attributes:
    setting: The dotted key of the setting. The value is a number, or a list of
      equal numbers.
    measure: A dict with the `name` of a measure, and the options of the
      measure.
    minus: None, or the label of a base series. The numbers of the base series
      are subtracted from the numbers of each further series, at the same
      setting and seed. The base series is not drawn.
    title: The title of the panel.
    xlabel: The label of the x axis.
    ylabel: The label of the y axis.
    ylim: The limits of the y axis. If a curve ends outside of a limit, the
      limit of the data replaces the given limit. None for the limits of the
      data.
    xscale: Any Matplotlib scale.
    yscale: Any Matplotlib scale. `linear_below` replaces this scale.
    linear_below: None, or the size below which the y axis is linear; the rest
      of the axis is logarithmic. The linear part shows noise around zero.
  """

  setting: str
  measure: Mapping[str, Any]
  minus: str | None = None
  title: str = ''
  xlabel: str = ''
  ylabel: str = ''
  ylim: Limits = None
  xscale: str = 'log'
  yscale: str = 'log'
  linear_below: float | None = None

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the numbers of all series.

    Args:
      axes: Matplotlib axes.
      series: All series of the figure.

    Raises:
      UserError: If a run lacks the setting or the measured quantity, if a
        series has two runs with the same setting and seed, or if the base
        series lacks a run.
    """
    if self.linear_below is not None and not 0 < self.linear_below < np.inf:
      raise errors.UserError(
        f'report(): linear_below={self.linear_below!r} is no positive number'
      )
    # The scales come first, because the margins depend on the scales.
    axes.set_xscale(self.xscale)
    if self.linear_below is None:
      axes.set_yscale(self.yscale)
    else:
      axes.set_yscale('symlog', linthresh=self.linear_below)
    counts: set[int] = set()
    settings: set[float] = set()
    for s, numbers in self._differences(series):
      x, y = _columns(numbers)
      counts.add(len(y))
      settings.update(map(self._setting, s.diverged))
      settings.update(x)
      drawing.draw_runs(axes, s, x, y, marker='.')
    title = f'{self.title} {drawing.sample(counts)}'.lstrip()
    drawing.label_axes(axes, self, title)
    # This margin replaces the margin 0 of `label_axes`.
    axes.margins(x=_MARGIN)
    for s in series:
      # A setting at which all runs diverged has no number, but is a result.
      for at in sorted(set(map(self._setting, s.diverged))):
        place = axes.get_xaxis_transform()
        axes.plot(at, 1.0, 'x', color=s.color, transform=place, clip_on=False)
    axes.set_xticks(sorted(settings))
    axes.set_xticks([], minor=True)

  def _differences(
    self, series: Sequence[Series]
  ) -> list[tuple[Series, Numbers]]:
    """Returns each series to draw, with the numbers of `minus` subtracted."""
    numbers = {s.label: self._numbers(s) for s in series}
    if self.minus is None:
      return [(s, numbers[s.label]) for s in series]
    if self.minus not in numbers:
      raise errors.UserError(
        f'minus={self.minus!r} is no series; there are {", ".join(numbers)}'
      )
    base = numbers[self.minus]
    return [
      (s, self._less(numbers[s.label], base))
      for s in series
      if s.label != self.minus
    ]

  def _less(self, numbers: Numbers, base: Numbers) -> Numbers:
    """Subtracts the numbers of the base series, by setting and seed."""
    for at, seeds in numbers.items():
      if missing := seeds.keys() - base.get(at, {}).keys():
        raise errors.UserError(
          f'{self.minus!r} has no run with {self.setting}={at:g} and'
          f' seed={min(missing)} to take away; train it too'
        )
    return {
      at: {seed: value - base[at][seed] for seed, value in seeds.items()}
      for at, seeds in numbers.items()
    }

  def _numbers(self, series: Series) -> Numbers:
    """Returns the measure of each run of a series, by setting and seed."""
    found: Numbers = {}
    for run in series.runs:
      value = measures.measure(self.measure, run)
      seeds_at = found.setdefault(self._setting(run), {})
      if run.config['seed'] in seeds_at:
        raise errors.UserError(
          f'{series.label!r} has two runs of one seed and one {self.setting},'
          f' such as {run.path}; name in the series what they differ in'
        )
      seeds_at[run.config['seed']] = value
    return found

  def _setting(self, run: Run) -> float:
    """Returns the setting of a run as a single number."""
    value = run.value(self.setting)
    numbers = {float(number) for number in np.ravel(value)}
    if len(numbers) != 1:
      raise errors.UserError(
        f'{run.path}: {self.setting}={value} is not one number to draw by'
      )
    return numbers.pop()


def _columns(numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
  """Returns settings (k,) and numbers (seeds, k); NaN for a missing run."""
  seeds = sorted({seed for values in numbers.values() for seed in values})
  x = sorted(numbers)
  y = [[numbers[at].get(seed, np.nan) for at in x] for seed in seeds]
  return np.asarray(x), np.asarray(y)
