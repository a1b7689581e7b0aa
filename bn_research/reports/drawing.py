"""Series of runs, and drawing functions for all kinds of panels."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bn_research import errors, registry
from bn_research.results import Run

Limits = tuple[float, float] | None

# With fewer seeds, the individual runs are more informative than the range.
_FEW = 5


@dataclasses.dataclass(frozen=True)
class Series:
  """Runs with a label and a style for drawing.

  For a panel of curves or bars, the runs differ in the seed only. For a panel
  over settings, the runs differ in the settings too.

  Attributes:
    label: The label of the runs in the legend.
    runs: The runs that are done.
    diverged: The runs that diverged. These runs have no curves.
    color: Any Matplotlib color.
    linestyle: Any Matplotlib line style.
    absent: The number of runs of `sweep()` without numbers, by reason.
  """

  label: str
  runs: Sequence[Run]
  diverged: Sequence[Run]
  color: str
  linestyle: str
  absent: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    """The label, with the numbers of runs that are not drawn."""
    counts = {'diverged': len(self.diverged), **self.absent}
    texts = [f'{count} {what}' for what, count in counts.items() if count]
    return f'{self.label} ({", ".join(texts)})' if texts else self.label


def of_label(series: Sequence[Series], label: str) -> Series:
  """Returns the series with a label.

  Args:
    series: The series of a figure.
    label: The label.

  Raises:
    UserError: If no series has the label.
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
  """Draws the mean over runs, and the range over runs or each run.

  Args:
    axes: Matplotlib axes.
    series: The series, for the label and the style.
    x: (k,) positions on the x axis.
    y: (runs, k) values; NaN for a missing value.
    marker: A Matplotlib marker for the points of the mean.
  """
  style: Any = {'color': series.color, 'linestyle': series.linestyle}
  if not len(y):
    # The legend still names the series, and says why no curve is drawn.
    axes.plot([], [], label=series.name, **style)
    return
  mean = np.nanmean(y, 0)
  axes.plot(x, mean, label=series.name, linewidth=1.4, marker=marker, **style)
  if len(y) >= _FEW:
    low, high = np.nanmin(y, 0), np.nanmax(y, 0)
    axes.fill_between(x, low, high, color=series.color, alpha=0.25, linewidth=0)
  elif len(y) > 1:
    axes.plot(x, y.T, linewidth=0.6, alpha=0.6, **style)


def say_nothing_is_done(axes: Any, panel: Any, series: Series) -> None:
  """Writes into an empty panel that no run of the series is done."""
  text = f'{series.name}: no run is done'
  axes.text(0.5, 0.5, text, ha='center', transform=axes.transAxes)
  axes.set_title(panel.title)


def sample(counts: Collection[int]) -> str:
  """Describes the seeds of a panel with curves, for the title.

  Args:
    counts: The number of seeds of each series.

  Returns:
    A text, for example `mean and range, 5 seeds`.
  """
  drawn = 'range' if min(filter(None, counts), default=1) >= _FEW else 'runs'
  return seeds(counts, f'mean and {drawn}, {{}} seeds')


def seeds(counts: Iterable[int], several: str) -> str:
  """Returns the number of seeds as text.

  Args:
    counts: The number of seeds of each series.
    several: The text for more than a single seed, with `{}` in the place of the
      number.

  Returns:
    `1 seed`, or `several` with the number. Different numbers are joined by
    `or`.
  """
  numbers = sorted(set(counts))
  if numbers[-1] == 0:
    return 'no run is done'
  if numbers[-1] == 1:
    return '1 seed'
  return several.format(' or '.join(map(str, numbers)))


def are_numbers(values: Any, count: int) -> bool:
  """Whether a value is a list or a tuple of `count` finite numbers."""
  return (
    isinstance(values, list | tuple)
    and len(values) == count
    and all(
      isinstance(value, int | float) and math.isfinite(value)
      for value in values
    )
  )


def check_limits(ylim: Any) -> None:
  """Raises a UserError if limits are neither None nor two numbers."""
  if ylim is not None and not are_numbers(ylim, 2):
    raise errors.UserError(
      f'report(): ylim={ylim!r} is not a pair of finite numbers'
    )


def label_axes(axes: Any, panel: Any, title: str) -> None:
  """Writes the title and the labels of a panel, and sets the limits.

  Args:
    axes: Matplotlib axes, with the curves and the scales of the panel.
    panel: An object with the fields `xlabel`, `ylabel` and `ylim`.
    title: The title.

  Raises:
    UserError: If `ylim` is neither None nor two finite numbers.
  """
  check_limits(panel.ylim)
  axes.set_title(title)
  axes.set_xlabel(panel.xlabel)
  axes.set_ylabel(panel.ylabel)
  axes.margins(x=0)
  axes.grid(alpha=0.3, linewidth=0.5)
  axes.xaxis.set_major_formatter(_thousands)
  axes.xaxis.set_minor_formatter('')
  # The limits come before the ticks, because the ticks of a logarithmic axis
  # depend on the limits.
  if panel.ylim is not None:
    _zoom(axes, panel.ylim)
  for axis in (axes.xaxis, axes.yaxis):
    _label_logarithms(axis)


def _zoom(axes: Any, ylim: tuple[float, float]) -> None:
  """Sets the limits of the y axis, and widens the limits for the curve ends.

  A zoom may hide the beginning of a curve, but not the end. If a curve ends
  outside of a limit, the limit of the data replaces the given limit.
  """
  low, high = ylim
  wide_low, wide_high = axes.get_ylim()
  ends = [line.get_ydata()[-1] for line in axes.lines if len(line.get_ydata())]
  if any(end < low for end in ends):
    low = wide_low
  if any(end > high for end in ends):
    high = wide_high
  axes.set_ylim(low, high)


def _label_logarithms(axis: Any) -> None:
  """Writes plain numbers on a logarithmic axis, more numbers on a short axis.

  On an axis of a decade or two, the powers of ten alone would be too few
  numbers.
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
  """Formats the number of a tick; Matplotlib also passes the position."""
  text = f'{value / 1000:g}K' if value >= 1000 else f'{value:g}'
  return text.replace('-', '\N{MINUS SIGN}')
