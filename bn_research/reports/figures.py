"""Figures: panels in a row, written as PNG and PDF."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bn_research import disk, errors, registry
from bn_research.reports import labels
from bn_research.reports import panels as panels_lib
from bn_research.results import Run, Runs

# Okabe and Ito's palette, which the color-blind can tell apart.
_COLORS = (
  *('#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'),
  '#000000',
)
# A number without a factor in common: 28 series differ in one or the other.
_LINESTYLES = ('--', '-', '-.', ':')

_STYLE: Any = {
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlesize': 'medium',
  'font.size': 8,
  'legend.edgecolor': 'none',
  'legend.framealpha': 0.8,
  'pdf.fonttype': 42,  # text as text
  'savefig.dpi': 200,
}

# Neither the date nor the version: the same runs give the same bytes.
_METADATA: dict[str, dict[str, None]] = {
  'png': {'Software': None},
  'pdf': {'CreationDate': None, 'Creator': None, 'Producer': None},
}


@dataclasses.dataclass(frozen=True)
class Figure:
  """What a config says of a figure.

  Attributes:
    name: Name of its files.
    series: Dicts with `label` and `where`, the values by dotted key of the
      configs of its runs; drawn in this order.
    panels: Dicts with `name`, a kind of panel, and the options of that kind.
    size: Width and height in inches.
    width_ratios: Relative widths of the panels; all equal where not given.
  """

  name: str
  series: Sequence[Mapping[str, Any]]
  panels: Sequence[Mapping[str, Any]]
  size: tuple[float, float] = (7.2, 2.6)
  width_ratios: Sequence[float] | None = None

  def draw(
    self, runs: Sequence[Run], directory: pathlib.Path
  ) -> list[pathlib.Path]:
    """Draws the figure and writes it as PNG and PDF.

    Returns:
      The paths of the files.

    Raises:
      UserError: If Matplotlib is not there, if a series has no run, or if the
        specification or the runs lack what a panel needs.
    """
    try:
      import matplotlib
      from matplotlib.figure import Figure as Canvas
    except ImportError as error:
      raise errors.UserError(
        "figures need Matplotlib: pip install -e '.[plots]'"
      ) from error

    series = [_series(spec, runs, i) for i, spec in enumerate(self.series)]
    panels = [
      registry.create('report(): panel', panels_lib.PANELS, spec)
      for spec in self.panels
    ]
    with matplotlib.rc_context(_STYLE):
      canvas = Canvas(figsize=self.size, layout='constrained')
      axes = canvas.subplots(
        ncols=len(panels), squeeze=False, width_ratios=self.width_ratios
      )[0]
      for panel, a in zip(panels, axes, strict=True):
        with registry.mistakes_in(f'report(): {type(panel).__name__}'):
          panel.draw(a, series)
      panels_lib.share_y(panels, axes)
      labels.draw_legend(canvas, axes, [s.name for s in series])
      canvas.draw_without_rendering()  # Sizes are settled by drawing.
      for a in axes:
        labels.part_ends(a)
      return [_save(canvas, directory / f'{self.name}.{f}') for f in _METADATA]


def _series(spec, runs, index) -> panels_lib.Series:
  matching = Runs(runs).select(spec['where'])
  done = [run for run in matching if run.is_done]
  if not done:
    raise errors.UserError(
      f'no run that is done is of the series {spec["label"]!r}'
    )
  return panels_lib.Series(
    spec['label'],
    done,
    len(matching) - len(done),
    _COLORS[index % len(_COLORS)],
    _LINESTYLES[index % len(_LINESTYLES)],
  )


def _save(canvas: Any, path: pathlib.Path) -> pathlib.Path:
  """Writes a figure in the format that its suffix names."""
  kind = path.suffix[1:]
  disk.write_atomically(
    path,
    lambda file: canvas.savefig(file, format=kind, metadata=_METADATA[kind]),
  )
  return path
