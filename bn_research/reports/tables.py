"""Panels of one number a run: bars of series, a heat map of two settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bn_research import errors
from bn_research.reports import drawing, measures
from bn_research.reports.drawing import Series

_WIDTH = 0.7  # of a bar, where the distance of bars is 1


@dataclasses.dataclass(frozen=True)
class Bars:
  """A measure of each series: the mean over seeds, and each seed as a dot.

  Attributes:
    measure: Dict with `name`, a measure, and its options; or a dict of such
      dicts by label, for a group of bars for each series.
    title: Title of the panel.
    xlabel: Label of the x axis.
    ylabel: Label of the y axis.
    ylim: Ends of the y axis.
    yscale: Any scale of Matplotlib's.
  """

  measure: Mapping[str, Any]
  title: str = ''
  xlabel: str = ''
  ylabel: str = ''
  ylim: drawing.Limits = None
  yscale: str = 'linear'

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the bars of all series."""
    if 'name' in self.measure:
      groups = {'': self.measure}
    else:
      groups = dict(self.measure)
    width = _WIDTH / len(series)
    for k, s in enumerate(series):
      values = np.asarray(
        [[measures.measure(m, run) for run in s.runs] for m in groups.values()]
      )
      x = np.arange(len(groups)) + (k - (len(series) - 1) / 2) * width
      axes.bar(
        x, values.mean(1), 0.9 * width, color=s.color, alpha=0.6, label=s.name
      )
      axes.plot(x, values, '.', color=s.color, markersize=3)
    axes.set_yscale(self.yscale)
    counts = [len(s.runs) for s in series]
    seeds = drawing.seeds(counts, 'mean and each of {} seeds')
    axes.set_title(f'{self.title} {seeds}'.lstrip())
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlabel(self.xlabel)
    axes.set_ylabel(self.ylabel)
    if self.ylim is not None:
      axes.set_ylim(*self.ylim)


@dataclasses.dataclass(frozen=True)
class HeatMap:
  """A measure over two settings: the mean over the seeds of one series.

  Attributes:
    series: The label of the series.
    x: The dotted key of the setting along the x axis.
    y: The dotted key of the setting along the y axis.
    measure: Dict with `name`, a measure, and its options.
    title: Title of the panel.
    xlabel: Label of the x axis; the key where not given.
    ylabel: Label of the y axis; the key where not given.
    label: Label of the colours.
  """

  series: str
  x: str
  y: str
  measure: Mapping[str, Any]
  title: str = ''
  xlabel: str | None = None
  ylabel: str | None = None
  label: str = ''

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the map of the one series."""
    cells = self._cells(drawing.of_label(series, self.series))
    xs, ys = (sorted({place[k] for place in cells}, key=_order) for k in (0, 1))
    means = [[np.mean(cells.get((x, y), [np.nan])) for x in xs] for y in ys]
    image = axes.imshow(means, origin='lower', aspect='auto', cmap='viridis')
    axes.figure.colorbar(image, ax=axes, label=self.label)
    _write_numbers(axes, np.asarray(means))
    axes.set_xticks(range(len(xs)), [str(x) for x in xs])
    axes.set_yticks(range(len(ys)), [str(y) for y in ys])
    seeds = drawing.seeds(map(len, cells.values()), 'mean of {} seeds')
    axes.set_title(f'{self.title} {seeds}'.lstrip())
    axes.set_xlabel(self.x if self.xlabel is None else self.xlabel)
    axes.set_ylabel(self.y if self.ylabel is None else self.ylabel)
    axes.spines[:].set_visible(False)

  def _cells(self, series: Series) -> dict[tuple[Any, Any], list[float]]:
    """Returns the measures of all seeds, by the two settings."""
    cells: dict[tuple[Any, Any], list[float]] = {}
    for run in series.runs:
      place = (_hashable(run.value(self.x)), _hashable(run.value(self.y)))
      cells.setdefault(place, []).append(measures.measure(self.measure, run))
    return cells


def _write_numbers(axes: Any, values: np.ndarray) -> None:
  """Writes the number of each cell of a heat map, readable on its colour."""
  for (row, column), value in np.ndenumerate(values):
    text = '' if np.isnan(value) else f'{value:.3g}'
    color = 'white' if value < np.nanmean(values) else 'black'
    at = {'ha': 'center', 'va': 'center', 'fontsize': 'small'}
    axes.text(column, row, text, color=color, **at)


def _hashable(value: Any) -> Any:
  if isinstance(value, Mapping):
    raise errors.UserError(
      f'report(): a heat map is over numbers or names, and not over {value}'
    )
  return tuple(value) if isinstance(value, list) else value


def _order(value: Any) -> tuple[bool, Any]:
  """Numbers first, in their order; then the rest as text."""
  is_number = isinstance(value, int | float)
  return not is_number, value if is_number else str(value)
