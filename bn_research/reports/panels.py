"""The kinds of panels that a figure is made of."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bn_research import errors
from bn_research.reports.runs import Run

_FEW = 5  # seeds below which the runs say more than their spread

Limits = tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Series:
  """Runs that differ in the seed only, and how they are drawn.

  Attributes:
    label: Their name in legends.
    runs: Those that are done.
    num_diverged: How many more diverged.
    color: Any color of Matplotlib's.
    linestyle: Any line style of Matplotlib's.
  """

  label: str
  runs: Sequence[Run]
  num_diverged: int
  color: str
  linestyle: str


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
    ylim: Ends of the y axis; those of the data where not given.
  """

  metric: str
  x: str = 'step'
  title: str = ''
  xlabel: str = 'training step'
  ylabel: str = ''
  ylim: Limits = None

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the curves of all series."""
    for s in series:
      x, y = self._columns(s)
      style = {'color': s.color, 'linestyle': s.linestyle}
      axes.plot(x, y.mean(0), label=_label(s), linewidth=1.4, **style)
      if len(y) >= _FEW:
        low, high = y.min(0), y.max(0)
        axes.fill_between(x, low, high, color=s.color, alpha=0.25, linewidth=0)
      elif len(y) > 1:
        axes.plot(x, y.T, linewidth=0.6, alpha=0.6, **style)
    axes.legend(
      loc='lower right',
      title=_legend_title(series),
      fontsize='small',
      title_fontsize='small',
      alignment='left',
    )
    _label_axes(axes, self)

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
    ylim: Ends of the y axis; where not given, all such panels of a figure share
      those of their data.
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
      _label_end(axes, f'{q:g}%', (steps[-1], value[-1]))
    _label_axes(axes, self)
    axes.set_title(f'{self.title}, seed {run.config["seed"]}'.lstrip(', '))


PANELS = {'curves': Curves, 'bands': Bands}


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


def _label_axes(axes: Any, panel: Curves | Bands) -> None:
  axes.set_title(panel.title)
  axes.set_xlabel(panel.xlabel)
  axes.set_ylabel(panel.ylabel)
  axes.margins(x=0)
  axes.grid(alpha=0.3, linewidth=0.5)
  axes.xaxis.set_major_formatter(_thousands)
  if panel.ylim is not None:
    axes.set_ylim(panel.ylim)


def _label_end(axes: Any, text: str, end: tuple[float, float]) -> None:
  """Writes a label to the right of the end of a line."""
  axes.annotate(
    text,
    end,
    xytext=(2, 0),
    textcoords='offset points',
    verticalalignment='center',
    fontsize='small',
  )


def _thousands(value: float, _: int) -> str:
  return f'{value / 1000:g}K' if value >= 1000 else f'{value:g}'


def _legend_title(series: Sequence[Series]) -> str:
  counts = sorted({len(s.runs) for s in series})
  number = ' or '.join(map(str, counts))
  if counts[-1] == 1:
    return '1 seed'
  if counts[0] >= _FEW:
    return f'mean and range, {number} seeds'
  return f'mean and runs, {number} seeds'


def _label(series: Series) -> str:
  if not series.num_diverged:
    return series.label
  return f'{series.label} ({series.num_diverged} more diverged)'
