"""Draws figures, which are panels in a row, and writes PNG and PDF files."""

import collections
import contextlib
import dataclasses
import pathlib
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bn_research import disk, errors, registry
from bn_research.reports import drawing, labels
from bn_research.reports import panels as panels_lib
from bn_research.reports.runs import Absent
from bn_research.results import Run, Runs, matches

# The palette of Okabe and Ito. Readers with color blindness can distinguish the
# colors. The two reds and the two blues get different line styles.
_COLORS = (
  *('#D55E00', '#0072B2', '#009E73', '#CC79A7', '#000000', '#E69F00'),
  '#56B4E9',
)
# The numbers of colors and of line styles, 7 and 4, have no common factor.
# Hence 28 series differ in the color or in the line style.
_LINESTYLES = ('--', '-', '-.', ':')

_STYLE: Any = {
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlesize': 'medium',
  'font.size': 8,
  'legend.edgecolor': 'none',
  'legend.framealpha': 0.8,
  'pdf.fonttype': 42,  # TrueType, so text in the PDF stays text
  'savefig.dpi': 200,
}

# None removes the date and the version of Matplotlib, so the same runs give the
# same bytes.
_METADATA: dict[str, dict[str, None]] = {
  'png': {'Software': None},
  'pdf': {'CreationDate': None, 'Creator': None, 'Producer': None},
}


@dataclasses.dataclass(frozen=True)
class Figure:
  """The description of a figure in a config.

  Attributes:
    name: The name of the files, without a suffix.
    series: A dict with `label` and `where` for each series, in the order of
      drawing. `where` contains values by dotted key, and selects the runs whose
      configs have these values.
    panels: A dict for each panel, with the `name` of a kind of panel, and the
      options of this kind.
    size: The width and the height in inches.
    width_ratios: The relative widths of the panels; None for equal widths.
  """

  name: str
  series: Sequence[Mapping[str, Any]]
  panels: Sequence[Mapping[str, Any]]
  size: tuple[float, float] = (7.2, 2.6)
  width_ratios: Sequence[float] | None = None

  def __post_init__(self):
    check_name('figure', self.name)
    if not self.series or not self.panels:
      raise ValueError(f'the figure {self.name!r} has no series, or no panel')
    for spec in self.series:
      check_series(spec)
    labels = [spec['label'] for spec in self.series]
    for label in labels:
      if labels.count(label) > 1:
        raise ValueError(f'two series have the label {label!r}')
    _check_lengths('size', self.size, 2)
    if self.width_ratios is not None:
      _check_lengths('width_ratios', self.width_ratios, len(self.panels))

  def draw(
    self,
    runs: Sequence[Run],
    directory: pathlib.PurePath,
    absent: Sequence[Absent] = (),
  ) -> list[pathlib.PurePath]:
    """Draws the figure, and writes the figure as PNG and PDF.

    Args:
      runs: The runs of an experiment.
      directory: The directory of the files.
      absent: The planned runs without numbers.

    Returns:
      The paths of the files.

    Raises:
      UserError: If Matplotlib is not installed, if a series has no run, if the
        description of a panel has a mistake, or if a run lacks a quantity of a
        panel.
    """
    # Matplotlib is an optional dependency, and takes long to import.
    try:
      import matplotlib
      from matplotlib.figure import Figure as Canvas
    except ImportError as error:
      raise errors.UserError(
        "figures need Matplotlib: pip install -e '.[plots]'"
      ) from error

    series = [
      select(spec, runs, absent, i) for i, spec in enumerate(self.series)
    ]
    panels = [_panel(spec) for spec in self.panels]
    with matplotlib.rc_context(_STYLE), _refusals_of_matplotlib(self.name):
      canvas = Canvas(figsize=self.size, layout='constrained')
      axes = canvas.subplots(
        ncols=len(panels), squeeze=False, width_ratios=self.width_ratios
      )[0]
      for panel, a in zip(panels, axes, strict=True):
        with registry.mistakes_in(f'report(): {type(panel).__name__}'):
          panel.draw(a, series)
      panels_lib.share_y(panels, axes)
      labels.draw_legend(canvas, axes, [s.name for s in series])
      # `part_ends` reads the sizes of labels, and only drawing computes sizes.
      canvas.draw_without_rendering()
      for a in axes:
        labels.part_ends(a)
      return [_save(canvas, directory / f'{self.name}.{f}') for f in _METADATA]


def check_name(kind: str, name: Any) -> None:
  """Raises a ValueError if a name is no name of a file.

  Args:
    kind: The kind of the named thing, for the message.
    name: The name in a config.
  """
  if not re.fullmatch(r'[\w.-]*\w[\w.-]*', str(name)):
    raise ValueError(
      f'the {kind} name {name!r} is no name of a file; use letters, digits, -'
      ' and _'
    )


def check_series(spec: Any) -> None:
  """Raises a ValueError if the description of a series is incomplete.

  Args:
    spec: The description of a series in a config.
  """
  if (
    not isinstance(spec, Mapping)
    or not isinstance(spec.get('label'), str)
    or not isinstance(spec.get('where'), Mapping)
  ):
    raise ValueError(
      f'the series {spec!r} is no dict with a text `label` and a dict `where`'
    )


def _check_lengths(name: str, values: Any, count: int) -> None:
  """Raises a ValueError unless an option has `count` positive numbers."""
  if not drawing.are_numbers(values, count) or min(values) <= 0:
    raise ValueError(f'{name}={values!r} is not {count} positive number(s)')


@contextlib.contextmanager
def _refusals_of_matplotlib(name: str) -> Iterator[None]:
  """Turns an error that Matplotlib raises for an option into a single line.

  Matplotlib checks scales, limits and formulas, some of them only when it draws
  the text.

  Args:
    name: The name of the figure, for the message.

  Raises:
    UserError: If Matplotlib raised an error.
  """
  try:
    yield
  except Exception as error:
    *_, last = traceback.extract_tb(error.__traceback__)
    if 'matplotlib' not in pathlib.Path(last.filename).parts:
      raise
    raise errors.UserError(
      f'report(): figure {name!r}: {" ".join(str(error).split())}'
    ) from error


def _panel(spec: Mapping[str, Any]) -> panels_lib.Panel:
  """Creates a panel from the description in a config."""
  panel = registry.create('report(): panel', panels_lib.PANELS, spec)
  if not hasattr(panel, 'draw'):
    raise errors.UserError(
      f'report(): panel {spec.get("name")!r} has no method draw(axes, series)'
    )
  return panel


def select(
  spec: Mapping[str, Any],
  runs: Sequence[Run],
  absent: Sequence[Absent],
  index: int = 0,
) -> drawing.Series:
  """Returns the series of a description, with the style for an index.

  Args:
    spec: The description: a dict with `label` and `where`.
    runs: The runs of an experiment.
    absent: The planned runs without numbers.
    index: The number of the series, for the style.

  Raises:
    UserError: If no run, finished or planned, is of the series.
  """
  where = spec['where']
  matching = Runs(runs).select(where)
  planned = [run.reason for run in absent if matches(run.config, where)]
  if not matching and not planned:
    raise errors.UserError(f'no run is of the series {spec["label"]!r}')
  return drawing.Series(
    spec['label'],
    [run for run in matching if run.is_done],
    [run for run in matching if not run.is_done],
    _COLORS[index % len(_COLORS)],
    _LINESTYLES[index % len(_LINESTYLES)],
    collections.Counter(planned),
  )


def _save(canvas: Any, path: pathlib.PurePath) -> pathlib.PurePath:
  """Writes a figure in the format of the file suffix."""
  kind = path.suffix[1:]
  disk.write_atomically(
    path,
    lambda file: canvas.savefig(file, format=kind, metadata=_METADATA[kind]),
  )
  return path
