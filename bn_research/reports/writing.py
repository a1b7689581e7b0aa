"""One report: its specification in, its files and its table out."""

import pathlib
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import rich.console

from bn_research import errors, registry
from bn_research.reports import claims, export, figures, runs

FOLDER = 'report'
_PLAIN_WIDTH = 120  # of the table where there is no terminal


def write(
  report: Mapping[str, Any],
  directory: str,
  points: Sequence[Mapping[str, Any]],
  swept: Collection[str],
  exports: Sequence[str] = (),
) -> None:
  """Draws the figures, checks the claims, and prints where and what.

  Args:
    report: `figures` and `claims`: lists of dicts, the fields of
      `figures.Figure` and of `claims.Claim`.
    directory: Where the runs are; the files go to its folder `report`.
    points: The configs of the experiment's runs.
    swept: The keys, dotted, that tell these runs apart.
    exports: Formats in which the runs and the claims are written, too: keys of
      `export.KINDS`.

  Raises:
    UserError: If the specification is wrong, or the runs are of another config
      or lack what it needs.
  """
  if unknown := report.keys() - {'figures', 'claims'}:
    raise errors.UserError(
      f'report() returns {min(unknown)!r}; it may return figures and claims'
    )
  drawings = [
    registry.call('report()', figures.Figure, 'figure', spec)
    for spec in report.get('figures', ())
  ]
  statements = [
    registry.call('report()', claims.Claim, 'claim', spec)
    for spec in report.get('claims', ())
  ]
  found = runs.of_experiment(runs.load(directory), points, swept)
  for figure in drawings:
    for path in figure.draw(found, pathlib.Path(directory, FOLDER)):
      print(path)
  findings = [claims.check(claim, found) for claim in statements]
  for kind in exports:
    folder = pathlib.Path(directory, FOLDER)
    for path in export.write(kind, found, findings, folder):
      print(path)
  if findings:
    console = rich.console.Console(
      width=None if sys.stdout.isatty() else _PLAIN_WIDTH
    )
    console.print(claims.table(findings))
