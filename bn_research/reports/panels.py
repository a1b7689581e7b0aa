"""The kinds of panels that a figure is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from bn_research import errors
from bn_research.reports import drawing, measures, specs
from bn_research.reports.drawing import Series
from bn_research.reports.runs import Run

Limits = tuple[float, float] | None


class Panel(Protocol):
  """Draws itself; the fields are the options that a config gives."""

  title: str

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the series on Matplotlib's `axes`."""


@dataclasses.dataclass(frozen=True)
class Curves:
  """A metric of all series: the mean over seeds, and their lowest to highest.

  With fewer than five seeds, each run is drawn instead of the spread.

  Attributes:
    metric: The metric, as in `metrics.jsonl`.
    x: What it is drawn by: `step`, or another metric, such as `seconds`.
    title: Title of the panel.
    xlabel: Label of the x axis.
    ylabel: Label of the y axis.
    ylim: Ends of the y axis, moved where a curve ends outside; those of the
      data where not given.
    xscale: Any scale of Matplotlib's, such as `log`.
    yscale: Any scale of Matplotlib's.
    loc: Where the legend is, in Matplotlib's words; None for no legend.
  """

  metric: str
  x: str = 'step'
  title: str = ''
  xlabel: str = 'training step'
  ylabel: str = ''
  ylim: Limits = None
  xscale: str = 'linear'
  yscale: str = 'linear'
  loc: str | None = 'lower right'

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the curves of all series."""
    for s in series:
      x, y = self._columns(s)
      drawing.draw_runs(axes, s, x, y)
    axes.set_xscale(self.xscale)
    axes.set_yscale(self.yscale)
    counts = sorted({len(s.runs) for s in series})
    drawing.draw_legend(axes, drawing.legend_title(counts), self.loc)
    drawing.label_axes(axes, self)

  def _columns(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over runs of x, (k,), and y of each run, (runs, k)."""
    columns = [run.columns('step', self.x, self.metric) for run in series.runs]
    steps, xs, ys = zip(*columns, strict=True)
    if not all(np.array_equal(other, steps[0]) for other in steps):
      raise errors.UserError(
        f'the runs {series.label!r} measured {self.metric} at different steps;'
        ' draw them as different series'
      )
    return np.mean(xs, 0), np.asarray(ys)


@dataclasses.dataclass(frozen=True)
class Bands:
  """Percentiles that a probe took of one run: the first seed of one series.

  Each run has distributions of its own, which a mean over seeds would wash out.

  Attributes:
    series: The label of the series.
    probe: The name of the probe.
    array: Which of its arrays: (k, q), the percentiles in increasing order.
    title: Title of the panel.
    xlabel: Label of the x axis.
    ylabel: Label of the y axis.
    ylim: Ends of the y axis, as for curves; where not given, all such panels of
      a figure share those of their data.
  """

  series: str
  probe: str
  array: str
  title: str = ''
  xlabel: str = 'training step'
  ylabel: str = ''
  ylim: Limits = None

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the bands of the one series."""
    chosen = {s.label: s for s in series}.get(self.series)
    if chosen is None:
      raise errors.UserError(
        f'bands of an unknown series {self.series!r}; there are'
        f' {", ".join(s.label for s in series)}'
      )
    run = min(chosen.runs, key=lambda run: run.config['seed'])
    steps, values = run.probe(self.probe, self.array)
    middle = values.shape[1] // 2
    for low, high in zip(values.T[:middle], values.T[::-1], strict=False):
      axes.fill_between(
        steps, low, high, color=chosen.color, alpha=0.2, linewidth=0
      )
    percentiles = run.config['probe.percentiles']
    for i, (q, value) in enumerate(zip(percentiles, values.T, strict=True)):
      width = 1.4 if i == middle else 0.7
      axes.plot(steps, value, color=chosen.color, linewidth=width)
      drawing.label_end(axes, f'{q:g}%', (steps[-1], value[-1]))
    drawing.label_axes(axes, self)
    axes.set_title(f'{self.title}, seed {run.config["seed"]}'.lstrip(', '))


@dataclasses.dataclass(frozen=True)
class Settings:
  """A number of each run, against a setting in which the runs differ.

  Attributes:
    setting: The dotted key of the setting: a number, or a list of equal ones.
    measure: Dict with `name`, a measure, and its options.
    title: Title of the panel.
    xlabel: Label of the x axis.
    ylabel: Label of the y axis.
    ylim: Ends of the y axis, moved where a curve ends outside; those of the
      data where not given.
    xscale: Any scale of Matplotlib's.
    yscale: Any scale of Matplotlib's.
    loc: Where the legend is, in Matplotlib's words; None for no legend.
  """

  setting: str
  measure: Mapping[str, Any]
  title: str = ''
  xlabel: str = ''
  ylabel: str = ''
  ylim: Limits = None
  xscale: str = 'log'
  yscale: str = 'log'
  loc: str | None = 'upper left'

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the numbers of all series."""
    counts: set[int] = set()
    settings: set[float] = set()
    for s in series:
      x, y = self._columns(s)
      counts.add(len(y))
      settings.update(x)
      drawing.draw_runs(axes, s, x, y, marker='.')
    axes.set_xscale(self.xscale)
    axes.set_yscale(self.yscale)
    axes.set_xticks(sorted(settings))
    axes.set_xticks([], minor=True)
    drawing.draw_legend(axes, drawing.legend_title(sorted(counts)), self.loc)
    drawing.label_axes(axes, self)

  def _columns(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Returns (k,) settings, and (seeds, k) numbers; NaN where a seed lacks."""
    found: dict[float, dict[int, float]] = {}
    for run in series.runs:
      value = specs.create('measure', measures.MEASURES, self.measure, run=run)
      seeds_at = found.setdefault(self._setting(run), {})
      if run.config['seed'] in seeds_at:
        raise errors.UserError(
          f'{series.label!r} has two runs of one seed and one {self.setting},'
          f' such as {run.path}; name in the series what they differ in'
        )
      seeds_at[run.config['seed']] = value
    seeds = sorted({seed for values in found.values() for seed in values})
    x = sorted(found)
    y = [[found[at].get(seed, np.nan) for at in x] for seed in seeds]
    return np.asarray(x), np.asarray(y)

  def _setting(self, run: Run) -> float:
    values = {float(value) for value in np.ravel(run.config[self.setting])}
    if len(values) != 1:
      raise errors.UserError(
        f'{run.path}: {self.setting}={run.config[self.setting]} is not one'
        ' number to draw by'
      )
    return values.pop()


PANELS = {'curves': Curves, 'bands': Bands, 'settings': Settings}


def share_y(panels: Sequence[Panel], axes: Sequence[Any]) -> None:
  """Gives all bands of a figure the same y axis, so that they compare."""
  bands = [
    a
    for panel, a in zip(panels, axes, strict=True)
    if isinstance(panel, Bands) and panel.ylim is None
  ]
  if bands:
    limits = [a.get_ylim() for a in bands]
    for a in bands:
      a.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
