"""Writes a report: reads a specification, and writes files and a table."""

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import rich.console

from bn_research import disk, errors, registry
from bn_research.reports import claims, export, figures, runs, summary

FOLDER = 'report'
# The number of columns of the table, if the output is not a terminal.
_PLAIN_WIDTH = 120


def write(
  report: Mapping[str, Any],
  directory: str,
  points: Sequence[Mapping[str, Any]],
  swept: Collection[str],
  exports: Sequence[str] = (),
) -> None:
  """Draws the figures, checks the claims, and prints paths and results.

  Args:
    report: The result of `report()` of a config: a dict with `figures`,
      `tables` and `claims`, which are all optional. `figures` is a list of
      dicts with the fields of `figures.Figure`, `tables` of `summary.Table`,
      and `claims` of `claims.Claim`.
    directory: The directory of the runs. The files are written to the folder
      `report` in this directory.
    points: The configs of the runs in the experiment.
    swept: The dotted keys in which these configs differ.
    exports: Keys of `export.KINDS`: additional formats for tables of the runs
      and of the claims.

  Raises:
    UserError: If the specification has a mistake, if a run has a different
      config, or if a run lacks a quantity of the specification.
  """
  if not isinstance(report, Mapping):
    raise errors.UserError(
      f'report() returned {report!r}; return a dict with figures, tables and'
      ' claims'
    )
  if unknown := report.keys() - {'figures', 'tables', 'claims'}:
    raise errors.UserError(
      f'report() returns {min(unknown)!r}; it may return figures, tables and'
      ' claims'
    )
  for key, value in report.items():
    if not isinstance(value, list | tuple):
      raise errors.UserError(
        f'report(): {key} is a {type(value).__name__}; give a list'
      )
    for spec in value:
      if not isinstance(spec, Mapping):
        raise errors.UserError(
          f'report(): {key} has {spec!r} in its list; give a dict'
        )
  # The specification is checked before any run is read.
  drawings = [
    registry.call('report()', figures.Figure, 'figure', spec)
    for spec in report.get('figures', ())
  ]
  names = [drawing.name for drawing in drawings]
  for name in names:
    if names.count(name) > 1:
      raise errors.UserError(f'report(): two figures have the name {name!r}')
  tables = [
    registry.call('report()', summary.Table, 'table', spec)
    for spec in report.get('tables', ())
  ]
  summary.check_names(tables)
  statements = [
    registry.call('report()', claims.Claim, 'claim', spec)
    for spec in report.get('claims', ())
  ]
  loaded = runs.of_experiment(runs.load(directory), points, swept)
  whole, damaged = runs.readable(loaded)
  found = runs.without_copies(whole)
  absent = runs.absent(found, damaged, points)
  for figure in drawings:
    for path in figure.draw(found, disk.path(directory, FOLDER), absent):
      print(path)
  findings = [claims.check(claim, found, absent) for claim in statements]
  filled = {table.name: table.fill(found, absent) for table in tables}
  for kind in exports:
    folder = disk.path(directory, FOLDER)
    for path in export.write(kind, found, findings, folder, filled):
      print(path)
  console = rich.console.Console(
    width=None if sys.stdout.isatty() else _PLAIN_WIDTH
  )
  for rows in filled.values():
    console.print(summary.of_terminal(rows))
  if findings:
    console.print(claims.table(findings))
