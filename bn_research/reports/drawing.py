"""Series of runs, and how they are drawn: what panels have in common."""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from bn_research import errors, registry
from bn_research.results import Run

Limits = tuple[float, float] | None

_FEW = 5  # seeds below which the runs say more than their spread


@dataclasses.dataclass(frozen=True)
class Series:
  """Runs that differ in the seed only, and how they are drawn.

  Attributes:
    label: Their name in the legend.
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

  @property
  def name(self) -> str:
    """The label, and what is not drawn of it."""
    if not self.num_diverged:
      return self.label
    return f'{self.label} ({self.num_diverged} more diverged)'


def of_label(series: Sequence[Series], label: str) -> Series:
  """Returns the series of a label.

  Raises:
    UserError: If there is no such series.
  """
  found = {s.label: s for s in series}
  if label not in found:
    raise errors.UserError(
      f'report(): unknown series {label!r}{registry.hint(label, found)}; there'
      f' are {", ".join(found)}'
    )
  return found[label]


def draw_runs(
  axes: Any, series: Series, x: np.ndarray, y: np.ndarray, marker: str = ''
) -> None:
  """Draws the mean over runs of y, (runs, k), and its range or each run."""
  style = {'color': series.color, 'linestyle': series.linestyle}
  mean = np.nanmean(y, 0)
  axes.plot(x, mean, label=series.name, linewidth=1.4, marker=marker, **style)
  if len(y) >= _FEW:
    low, high = np.nanmin(y, 0), np.nanmax(y, 0)
    axes.fill_between(x, low, high, color=series.color, alpha=0.25, linewidth=0)
  elif len(y) > 1:
    axes.plot(x, y.T, linewidth=0.6, alpha=0.6, **style)


def sample(counts: Collection[int]) -> str:
  """Says how many seeds there are, and what a panel of curves draws of them."""
  drawn = 'range' if min(counts) >= _FEW else 'runs'
  return seeds(counts, f'mean and {drawn}, {{}} seeds')


def seeds(counts: Iterable[int], several: str) -> str:
  """Says how many seeds there are: `several`, with the numbers in its {}."""
  numbers = sorted(set(counts))
  if numbers[-1] == 1:
    return '1 seed'
  return several.format(' or '.join(map(str, numbers)))


def label_axes(axes: Any, panel: Any, title: str) -> None:
  """Writes title and labels, and sets limits, as a panel's fields say."""
  axes.set_title(title)
  axes.set_xlabel(panel.xlabel)
  axes.set_ylabel(panel.ylabel)
  axes.margins(x=0)
  axes.grid(alpha=0.3, linewidth=0.5)
  axes.xaxis.set_major_formatter(_thousands)
  axes.xaxis.set_minor_formatter('')
  if panel.ylim is not None:
    _zoom(axes, panel.ylim)
  for axis in (axes.xaxis, axes.yaxis):
    _label_logarithms(axis)


def _zoom(axes: Any, ylim: tuple[float, float]) -> None:
  """Sets the ends of the y axis, and moves them where a curve ends outside.

  A zoom may cut the beginning of a curve, but not hide how it ends.
  """
  low, high = ylim
  wide_low, wide_high = axes.get_ylim()
  ends = [line.get_ydata()[-1] for line in axes.lines]
  if any(end < low for end in ends):
    low = wide_low
  if any(end > high for end in ends):
    high = wide_high
  axes.set_ylim(low, high)


def _label_logarithms(axis: Any) -> None:
  """Writes plain numbers on an axis of logarithms, the more the shorter it is.

  Powers of ten alone would be one or two in a decade or two.
  """
  from matplotlib import ticker

  if axis.get_scale() == 'linear':
    return
  axis.set_major_formatter(_thousands)
  axis.set_minor_formatter('')
  low, high = axis.get_view_interval()
  if axis.get_scale() == 'log' and high < 1000 * low:
    subs = (1, 2, 5) if high < 100 * low else (1, 3)
    axis.set_major_locator(ticker.LogLocator(subs=subs))


def _thousands(value: float, _: int) -> str:
  text = f'{value / 1000:g}K' if value >= 1000 else f'{value:g}'
  return text.replace('-', '\N{MINUS SIGN}')
