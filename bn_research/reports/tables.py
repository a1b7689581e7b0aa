"""Panels of a number for each run: bars, and a heat map over two settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bn_research import errors
from bn_research.reports import drawing, measures
from bn_research.reports.drawing import Series
from bn_research.results import Run

# The width of a group of bars. The distance between two groups is 1.
_WIDTH = 0.7


@dataclasses.dataclass(frozen=True)
class Bars:
  """Bars of a measure: the mean over seeds, with a dot for each seed.

  Attributes:
    measure: A dict with the `name` of a measure, and the options of the
      measure. A dict from labels to dicts of this form is also valid: each
      label is a group of bars, with a bar for each series.
    title: The title of the panel.
    xlabel: The label of the x axis.
    ylabel: The label of the y axis.
    ylim: The limits of the y axis; None for the limits of the data.
    yscale: Any Matplotlib scale.
  """

  measure: Mapping[str, Any]
  title: str = ''
  xlabel: str = ''
  ylabel: str = ''
  ylim: drawing.Limits = None
  yscale: str = 'linear'

  def draw(self, axes: Any, series: Sequence[Series]) -> None:
    """Draws the bars of all series.

    Args:
      axes: Matplotlib axes.
      series: All series of the figure.

    Raises:
      UserError: If a run lacks the measured quantity, or if `ylim` is neither
        None nor two finite numbers.
    """
    drawing.check_limits(self.ylim)
    # Only a single measure has the key `name`; further keys are labels.
    if 'name' in self.measure:
      groups = {'': self.measure}
    else:
      groups = dict(self.measure)
    width = _WIDTH / len(series)
    for k, s in enumerate(series):
      values = np.asarray(
        [[measures.measure(m, run) for run in s.runs] for m in groups.values()]
      )
      if not s.runs:
        values = np.full((len(groups), 1), np.nan)
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
  """A heat map of a measure over two settings, as the mean over seeds.

  Attributes:
    series: The label of the series.
    x: The dotted key of the setting along the x axis.
    y: The dotted key of the setting along the y axis.
    measure: A dict with the `name` of a measure, and the options of the
      measure.
    title: The title of the panel.
    xlabel: The label of the x axis; None for the dotted key.
    ylabel: The label of the y axis; None for the dotted key.
    label: The label of the color bar.
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
    """Draws the heat map of a single series.

    Args:
      axes: Matplotlib axes.
      series: All series of the figure.

    Raises:
      UserError: If no series has the label, or if a run lacks a setting or the
        measured quantity.
    """
    chosen = drawing.of_label(series, self.series)
    if not chosen.runs:
      drawing.say_nothing_is_done(axes, self, chosen)
      return
    cells = self._cells(chosen)
    for run in chosen.diverged:
      # Without a number, but with a cell: a setting that diverges is a result.
      cells.setdefault(self._place(run), [])
    xs, ys = (sorted({place[k] for place in cells}, key=_order) for k in (0, 1))
    # A pair of settings without a run is NaN, and the cell stays empty.
    means = [[np.mean(cells.get((x, y)) or [np.nan]) for x in xs] for y in ys]
    image = axes.imshow(means, origin='lower', aspect='auto', cmap='viridis')
    axes.figure.colorbar(image, ax=axes, label=self.label)
    _write_numbers(axes, np.asarray(means))
    for run in chosen.diverged:
      x, y = self._place(run)
      if not cells[x, y]:
        at = xs.index(x), ys.index(y)
        axes.text(*at, 'diverged', ha='center', va='center', fontsize='small')
    axes.set_xticks(range(len(xs)), [str(x) for x in xs])
    axes.set_yticks(range(len(ys)), [str(y) for y in ys])
    counts = [len(values) for values in cells.values() if values]
    seeds = drawing.seeds(counts, 'mean of {} seeds')
    axes.set_title(f'{self.title} {seeds}'.lstrip())
    axes.set_xlabel(self.x if self.xlabel is None else self.xlabel)
    axes.set_ylabel(self.y if self.ylabel is None else self.ylabel)
    axes.spines[:].set_visible(False)

  def _cells(self, series: Series) -> dict[tuple[Any, Any], list[float]]:
    """Returns the measures of all runs of a series, by the two settings."""
    cells: dict[tuple[Any, Any], list[float]] = {}
    for run in series.runs:
      number = measures.measure(self.measure, run)
      cells.setdefault(self._place(run), []).append(number)
    return cells

  def _place(self, run: Run) -> tuple[Any, Any]:
    return _hashable(run.value(self.x)), _hashable(run.value(self.y))


def _write_numbers(axes: Any, values: np.ndarray) -> None:
  """Writes the number into each cell of a heat map.

  Args:
    axes: Matplotlib axes.
    values: (rows, columns) numbers of the cells; NaN for an empty cell.
  """
  for (row, column), value in np.ndenumerate(values):
    text = '' if np.isnan(value) else f'{value:.3g}'
    # The colors of small values are dark in the color map viridis, and need
    # white text.
    color = 'white' if value < np.nanmean(values) else 'black'
    at = {'ha': 'center', 'va': 'center', 'fontsize': 'small'}
    axes.text(column, row, text, color=color, **at)


def _hashable(value: Any) -> Any:
  """Returns a setting as a key of a dict: a tuple in place of a list."""
  if isinstance(value, Mapping):
    raise errors.UserError(
      f'report(): a heat map is over numbers or names, and not over {value}'
    )
  return tuple(value) if isinstance(value, list) else value


def _order(value: Any) -> tuple[bool, Any]:
  """Returns a sort key: numbers in order, then all further values as text."""
  # The first element separates numbers from text, which do not compare.
  is_number = isinstance(value, int | float)
  return not is_number, value if is_number else str(value)
