"""The kinds of panels of a figure."""

import dataclasses
import functools
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
  """A part of a figure with a pair of axes.

  A config gives the fields of a panel as options.

  Attributes:
    title: The title of the panel.
  """

  title: str

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the panel.

    Args:
      axes: Matplotlib axes.
      series: All series of the figure.

    Raises:
      UserError: If the runs lack a quantity of the panel.
    """


@dataclasses.dataclass(frozen=True)
class Curves:
  """A panel of curves: for each series, the mean and the range over seeds.

  For a series with fewer than five seeds, the curves of all runs replace the
  range.

  Attributes:
    metric: The name of a metric of `metrics.jsonl`, or None.
    probe: The key of a probe, if `metric` is None.
    array: The name of an array of the probe: (k,), a number for each of k
      steps.
    x: The quantity on the x axis for a metric: `step`, or a further metric, for
      example `seconds`.
    title: The title of the panel.
    xlabel: The label of the x axis.
    ylabel: The label of the y axis.
    ylim: The limits of the y axis. If a curve ends outside of a limit, the
      limit of the data replaces the given limit. None for the limits of the
      data.
    xscale: Any Matplotlib scale, for example `log`.
    yscale: Any Matplotlib scale.
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
    """Draws the curves of all series.

    Args:
      axes: Matplotlib axes.
      series: All series of the figure.

    Raises:
      UserError: If a run lacks the quantity, or if the runs of a series have
        different steps.
    """
    for s in series:
      x, y = self._columns(s)
      drawing.draw_runs(axes, s, x, y)
    axes.set_xscale(self.xscale)
    axes.set_yscale(self.yscale)
    sample = drawing.sample([len(s.runs) for s in series])
    title = f'{self.title} {sample}'.lstrip()
    drawing.label_axes(axes, self, title)

  def _columns(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of x over runs (k,), and y of each run (runs, k)."""
    # Only the steps must be equal in all runs. Further values of x, for example
    # seconds, differ between runs, and the curves are drawn at the mean of x.
    if not series.runs:
      return np.zeros(0), np.zeros((0, 0))
    columns = [self._of_run(run) for run in series.runs]
    # A run that was extended has rows at further steps than a run that had the
    # final length at once. The curve has the common steps.
    common = functools.reduce(np.intersect1d, [steps for steps, *_ in columns])
    ends = {int(steps[-1]) for steps, *_ in columns}
    if len(ends) > 1 or len(common) < min(2, len(columns[0][0])):
      raise errors.UserError(
        f'the runs {series.label!r} measured {self.metric or self.array} at'
        ' different steps; draw them as different series'
      )
    places = [np.searchsorted(steps, common) for steps, *_ in columns]
    xs = [x[place] for (_, x, _), place in zip(columns, places, strict=True)]
    ys = [y[place] for (*_, y), place in zip(columns, places, strict=True)]
    return np.mean(xs, 0), np.asarray(ys)

  def _of_run(self, run: Run) -> Sequence[np.ndarray]:
    """Returns the steps, x and y of a run, each (k,)."""
    if self.metric is not None and self.x != 'step':
      return run.columns('step', self.x, self.metric)
    steps, values = quantities.series(run, self.metric, self.probe, self.array)
    return steps, steps, values


@dataclasses.dataclass(frozen=True)
class Bands:
  """A panel of percentiles from a probe, for the first seed of a series.

  The panel shows a single run. Each run has different distributions, and a mean
  over seeds would smooth the distributions.

  Attributes:
    series: The label of the series.
    probe: The key of the probe.
    array: The name of an array of the probe: (k, q), q percentiles at k steps.
      The percentiles are in increasing order.
    title: The title of the panel.
    xlabel: The label of the x axis.
    ylabel: The label of the y axis.
    ylim: The limits of the y axis, as in `Curves`. All `Bands` panels of a
      figure with `ylim` None share the limits of the data in these panels.
  """

  series: str
  probe: str
  array: str
  title: str = ''
  xlabel: str = 'training step'
  ylabel: str = ''
  ylim: Limits = None

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the bands of a single series.

    Args:
      axes: Matplotlib axes.
      series: All series of the figure.

    Raises:
      UserError: If no series has the label, or if the run has no such array.
    """
    chosen = drawing.of_label(series, self.series)
    if not chosen.runs:
      drawing.say_nothing_is_done(axes, self, chosen)
      return
    run = min(chosen.runs, key=lambda run: run.config['seed'])
    steps, values = run.probe(self.probe, self.array)
    if values.ndim != 2 or len(values) != len(steps):
      raise errors.UserError(
        f'report(): the array {self.array!r} of the probe {self.probe!r} has'
        f' the shape {values.shape}; bands need (steps, percentiles)'
      )
    middle = values.shape[1] // 2
    # Each band lies between a low percentile and the matching high percentile:
    # the first and the last, the second and the second to last. The shorter
    # argument of `zip` ends the loop before the middle, hence strict=False.
    for low, high in zip(values.T[:middle], values.T[::-1], strict=False):
      axes.fill_between(
        steps, low, high, color=chosen.color, alpha=0.2, linewidth=0
      )
    _, percentiles = run.probe(self.probe, 'percentiles')
    for i, (q, value) in enumerate(zip(percentiles, values.T, strict=True)):
      width = 1.4 if i == middle else 0.7
      axes.plot(steps, value, color=chosen.color, linewidth=width)
      labels.label_end(axes, f'{q:g}%', (steps[-1], value[-1]))
    # `lstrip` removes the comma after an empty title.
    title = f'{self.title}, seed {run.config["seed"]}'.lstrip(', ')
    drawing.label_axes(axes, self, title)


PANELS = {
  'bands': Bands,
  'bars': Bars,
  'curves': Curves,
  'heat_map': HeatMap,
  'settings': Settings,
}
"""Kinds of panels by name, as classes with a method `draw`."""


def share_y(panels: Sequence[Panel], axes: Sequence[Any]) -> None:
  """Gives all bands of a figure the same y limits, for a fair comparison.

  Args:
    panels: The panels of a figure. Only `Bands` with `ylim` None are changed.
    axes: The Matplotlib axes of each panel, after drawing.
  """
  bands = [
    a
    for panel, a in zip(panels, axes, strict=True)
    if isinstance(panel, Bands) and panel.ylim is None
  ]
  if bands:
    limits = [a.get_ylim() for a in bands]
    for a in bands:
      a.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
