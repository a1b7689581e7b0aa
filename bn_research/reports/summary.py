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
    known = [spec['label'] for spec in self.series]
    for label, texts in self.published.items():
      if label not in known:
        raise ValueError(
          f'the table {self.name!r} has published numbers of {label!r}'
          f'{registry.hint(label, known)}; the series are {", ".join(known)}'
        )
      for title in texts:
        if title not in self.columns:
          raise ValueError(
            f'the table {self.name!r} has published numbers for {title!r}'
            f'{registry.hint(title, self.columns)}; the columns are'
            f' {", ".join(self.columns)}'
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
  ) -> float:
    """Returns the number of a column for a run."""
    with registry.mistakes_in(f'report(): table {self.name!r}'):
      options = _resolved(section, series, run)
    return measures.measure(options, run)


def _resolved(
  section: Mapping[str, Any], series: Sequence[Series], run: Run
) -> dict[str, Any]:
  """Returns a measure for a run, with numbers as options."""
  resolved = {}
  for key, value in section.items():
    if isinstance(value, Mapping) and 'series' in value:
      options = dict(value)
      runs = drawing.of_label(series, options.pop('series')).runs
      # A level of the same seed, because the best of a run is above the mean of
      # such bests in about half of the runs only.
      numbers = [
        measures.measure(options, other)
        for other in runs
        if other.config['seed'] == run.config['seed']
      ]
      # Without a finished run the level is unknown, and no run reaches NaN.
      value = float(np.mean(numbers)) if numbers else float('nan')
    resolved[key] = value
  return resolved


def _cell(values: Sequence[float]) -> str:
  """Returns the mean and the range of a measure, and counts runs without it."""
  if not values:
    return 'no run is done'
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
