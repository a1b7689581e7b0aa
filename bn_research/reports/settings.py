"""A number of each run, against a setting in which the runs differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bn_research import errors
from bn_research.reports import drawing, measures
from bn_research.reports.drawing import Limits, Series
from bn_research.results import Run

_MARGIN = 0.03  # of the width; a marker would be cut in half by the edge

Numbers = dict[float, dict[int, float]]  # by setting, then by seed


@dataclasses.dataclass(frozen=True)
class Settings:
  """A number of each run, against a setting in which the runs differ.

  Attributes:
    setting: The dotted key of the setting: a number, or a list of equal ones.
    measure: Dict with `name`, a measure, and its options.
    minus: The label of a series whose number, at the same setting and seed, is
      taken away from that of the others; it is then not drawn itself.
    title: Title of the panel.
    xlabel: Label of the x axis.
    ylabel: Label of the y axis.
    ylim: Ends of the y axis, moved where a curve ends outside; those of the
      data where not given.
    xscale: Any scale of Matplotlib's.
    yscale: Any scale of Matplotlib's.
    linear_below: Size below which numbers are drawn on a linear part of the
      axis, not a logarithmic one: what is noise is then seen about zero.
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
    """Draws the numbers of all series."""
    # First, so that margins are those of the scale.
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
      settings.update(x)
      drawing.draw_runs(axes, s, x, y, marker='.')
    title = f'{self.title} {drawing.sample(counts)}'.lstrip()
    drawing.label_axes(axes, self, title)
    axes.margins(x=_MARGIN)
    axes.set_xticks(sorted(settings))
    axes.set_xticks([], minor=True)

  def _differences(
    self, series: Sequence[Series]
  ) -> list[tuple[Series, Numbers]]:
    """Returns the numbers of the series to draw, less those of `minus`."""
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
    value = run.value(self.setting)
    numbers = {float(number) for number in np.ravel(value)}
    if len(numbers) != 1:
      raise errors.UserError(
        f'{run.path}: {self.setting}={value} is not one number to draw by'
      )
    return numbers.pop()


def _columns(numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
  """Returns (k,) settings, and (seeds, k) numbers; NaN where a seed lacks."""
  seeds = sorted({seed for values in numbers.values() for seed in values})
  x = sorted(numbers)
  y = [[numbers[at].get(seed, np.nan) for at in x] for seed in seeds]
  return np.asarray(x), np.asarray(y)
