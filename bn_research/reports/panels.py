"""The kinds of panels that a figure is made of."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bn_research import errors
from bn_research.reports import drawing, labels, quantities
from bn_research.reports.drawing import Limits, Series
from bn_research.reports.settings import Settings
from bn_research.reports.tables import Bars, HeatMap
from bn_research.results import Run


class Panel(Protocol):
  """Draws itself; the fields are the options that a config gives."""

  title: str

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the series on Matplotlib's `axes`."""


@dataclasses.dataclass(frozen=True)
class Curves:
  """A quantity of all series: the mean over seeds, and their lowest to highest.

  With fewer than five seeds, each run is drawn instead of the spread.

  Attributes:
    metric: The quantity, where it is a metric of `metrics.jsonl`.
    probe: The key of the probe, where it is not.
    array: Which array of the probe: (k,), one number a step.
    x: What a metric is drawn by: `step`, or another metric, such as `seconds`.
    title: Title of the panel.
    xlabel: Label of the x axis.
    ylabel: Label of the y axis.
    ylim: Ends of the y axis, moved where a curve ends outside; those of the
      data where not given.
    xscale: Any scale of Matplotlib's, such as `log`.
    yscale: Any scale of Matplotlib's.
  """

  metric: str | None = None
  probe: str | None = None
  array: str | None = None
  x: str = 'step'
  title: str = ''
  xlabel: str = 'training step'
  ylabel: str = ''
  ylim: Limits = None
  xscale: str = 'linear'
  yscale: str = 'linear'

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the curves of all series."""
    for s in series:
      x, y = self._columns(s)
      drawing.draw_runs(axes, s, x, y)
    axes.set_xscale(self.xscale)
    axes.set_yscale(self.yscale)
    sample = drawing.sample([len(s.runs) for s in series])
    title = f'{self.title} {sample}'.lstrip()
    drawing.label_axes(axes, self, title)

  def _columns(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over runs of x, (k,), and y of each run, (runs, k)."""
    columns = [self._of_run(run) for run in series.runs]
    steps, xs, ys = zip(*columns, strict=True)
    if not all(np.array_equal(other, steps[0]) for other in steps):
      raise errors.UserError(
        f'the runs {series.label!r} measured {self.metric or self.array} at'
        ' different steps; draw them as different series'
      )
    return np.mean(xs, 0), np.asarray(ys)

  def _of_run(self, run: Run) -> Sequence[np.ndarray]:
    if self.metric is not None and self.x != 'step':
      return run.columns('step', self.x, self.metric)
    steps, values = quantities.series(run, self.metric, self.probe, self.array)
    return steps, steps, values


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
    chosen = drawing.of_label(series, self.series)
    run = min(chosen.runs, key=lambda run: run.config['seed'])
    steps, values = run.probe(self.probe, self.array)
    middle = values.shape[1] // 2
    for low, high in zip(values.T[:middle], values.T[::-1], strict=False):
      axes.fill_between(
        steps, low, high, color=chosen.color, alpha=0.2, linewidth=0
      )
    _, percentiles = run.probe(self.probe, 'percentiles')
    for i, (q, value) in enumerate(zip(percentiles, values.T, strict=True)):
      width = 1.4 if i == middle else 0.7
      axes.plot(steps, value, color=chosen.color, linewidth=width)
      labels.label_end(axes, f'{q:g}%', (steps[-1], value[-1]))
    title = f'{self.title}, seed {run.config["seed"]}'.lstrip(', ')
    drawing.label_axes(axes, self, title)


PANELS = {
  'bands': Bands,
  'bars': Bars,
  'curves': Curves,
  'heat_map': HeatMap,
  'settings': Settings,
}
"""Panels by name: classes with a method `draw`."""


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
