"""Tables of measures: a row for each series, beside published numbers."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.table
import rich.text

from bn_research import errors, registry
from bn_research.reports import drawing, measures
from bn_research.reports.drawing import Series
from bn_research.reports.figures import check_name, check_series, select
from bn_research.reports.runs import Absent
from bn_research.results import Run

Rows = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of measures, as the mean over seeds with the range.

  Attributes:
    name: The name of the table, for the title and for the files of an export.
    series: A dict with `label` and `where` for each row.
    columns: A dict with the `name` of a measure and the options of the measure,
      by the title of the column. An option may depend on another series: a
      dict with the label `series` and with a measure stands for the measure of
      the run of this series with the same seed.
    published: Published numbers as text, by the label of the row and the title
      of the column, and with the origin of the numbers.
  """

  name: str
  series: Sequence[Mapping[str, Any]]
  columns: Mapping[str, Mapping[str, Any]]
  published: Mapping[str, Mapping[str, str]] = dataclasses.field(
    default_factory=dict
  )

  def __post_init__(self):
    check_name('table', self.name)
    if self.name in ('runs', 'claims'):
      raise ValueError(
        f'the table name {self.name!r} is the name of another export; choose'
        ' another'
      )
    for spec in self.series:
      check_series(spec)
    for label, texts in self.published.items():
      self._check_label('has published numbers of', label)
      for title in texts:
        if title not in self.columns:
          raise ValueError(
            f'the table {self.name!r} has published numbers for {title!r}'
            f'{registry.hint(title, self.columns)}; the columns are'
            f' {", ".join(self.columns)}'
          )
    for section in self.columns.values():
      for options in section.values():
        other = _series_of(options)
        if other is not None:
          self._check_label('has a column that depends on', other)

  def _check_label(self, what: str, label: str) -> None:
    """Raises a ValueError if no series has the label."""
    known = [spec['label'] for spec in self.series]
    if label not in known:
      raise ValueError(
        f'the table {self.name!r} {what} {label!r}'
        f'{registry.hint(label, known)}; the series are {", ".join(known)}'
      )

  def fill(self, runs: Sequence[Run], absent: Sequence[Absent] = ()) -> Rows:
    """Returns the rows of the table, as text by title.

    Args:
      runs: The runs of an experiment.
      absent: The planned runs without numbers.

    Raises:
      UserError: If a series has no run, or if a run lacks a quantity.
    """
    series = [select(spec, runs, absent) for spec in self.series]
    rows = []
    for s in series:
      row = {self.name: s.name}
      for title, section in self.columns.items():
        row[title] = _cell(
          [self._measured(section, series, run) for run in s.runs]
        )
        if self.published:
          texts = self.published.get(s.label, {})
          row[f'{title}, published'] = texts.get(title, '')
      rows.append(row)
    return rows

  def _measured(
    self, section: Mapping[str, Any], series: Sequence[Series], run: Run
  ) -> float | None:
    """Returns the number of a column for a run; None without a level."""
    with registry.mistakes_in(f'report(): table {self.name!r}'):
      options = _resolved(section, series, run)
    return None if options is None else measures.measure(options, run)


def _series_of(options: Any) -> str | None:
  """Returns the label of the series that an option of a measure depends on."""
  return options.get('series') if isinstance(options, Mapping) else None


def _resolved(
  section: Mapping[str, Any], series: Sequence[Series], run: Run
) -> dict[str, Any] | None:
  """Returns a measure for a run, with numbers as options.

  The result is None if an option depends on a series that has no finished run
  with the seed of the run.
  """
  resolved = {}
  for key, value in section.items():
    label = _series_of(value)
    if label is not None:
      options = {name: v for name, v in value.items() if name != 'series'}
      runs = drawing.of_label(series, label).runs
      # A level of the same seed, because the best of a run is above the mean of
      # such bests in about half of the runs only.
      numbers = [
        measures.measure(options, other)
        for other in runs
        if other.config['seed'] == run.config['seed']
      ]
      if not numbers:
        return None
      value = float(np.mean(numbers))
    resolved[key] = value
  return resolved


def _cell(measured: Sequence[float | None]) -> str:
  """Returns the mean and the range of a measure, and counts runs without it."""
  if not measured:
    return 'no run is done'
  values = [value for value in measured if value is not None]
  # A run without a level neither reached the level nor missed the level.
  unknown = len(measured) - len(values)
  texts = [_of_known(values)] if values else []
  if unknown:
    texts.append(f'{unknown} without a level')
  return ', '.join(texts)


def _of_known(values: Sequence[float]) -> str:
  finite = [value for value in values if np.isfinite(value)]
  if not finite:
    return f'none of {len(values)} runs'
  low, high = _number(min(finite)), _number(max(finite))
  text = _number(float(np.mean(finite)))
  if len(finite) > 1:
    text += f' [{low}, {high}]'
  if len(finite) < len(values):
    text += f', {len(finite)} of {len(values)} runs'
  return text


def _number(value: float) -> str:
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def of_terminal(rows: Rows) -> rich.table.Table:
  """Returns a filled table for a terminal.

  Args:
    rows: The result of `Table.fill`.
  """
  titles = list(dict.fromkeys(title for row in rows for title in row))
  result = rich.table.Table(*titles, show_lines=True)
  for row in rows:
    # Brackets in a text are no markup of rich.
    result.add_row(*(rich.text.Text(row.get(title, '')) for title in titles))
  return result


def check_names(tables: Sequence[Table]) -> None:
  """Raises a UserError if two tables have one name.

  Args:
    tables: The tables of a report.
  """
  counts = collections.Counter(table.name for table in tables)
  for name, count in counts.items():
    if count > 1:
      raise errors.UserError(f'report(): two tables have the name {name!r}')
