"""Writes runs and claims as tables, for papers and for different programs."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bn_research import disk
from bn_research.reports.claims import Finding
from bn_research.results import Run, Runs, csv_of

Rows = Sequence[Mapping[str, Any]]


def write(
  kind: str,
  runs: Sequence[Run],
  findings: Sequence[Finding],
  folder: disk.PathLike,
  others: Mapping[str, Rows] | None = None,
) -> list[pathlib.PurePath]:
  """Writes a table of the runs, of the claims if any, and further tables.

  Args:
    kind: A key of `KINDS`.
    runs: The runs. The row of a run contains the path, the status, the settings
      in which the runs differ, and the last value of each metric.
    findings: The findings about the claims. Each finding is a row.
    folder: The directory of the files.
    others: Further tables by name.

  Returns:
    The paths of the files.
  """
  tables = {
    'runs': _of_runs(Runs(runs)),
    'claims': _of_findings(findings),
    **(others or {}),
  }
  suffix, format_ = KINDS[kind]
  written = []
  for name, rows in tables.items():
    if rows:
      path = disk.path(folder, f'{name}.{suffix}')
      _write(path, format_(rows))
      written.append(path)
  return written


def _write(path: pathlib.PurePath, text: str) -> None:
  disk.write_bytes(path, text.encode())


def _of_runs(runs: Runs) -> Rows:
  return [
    first | {name: values[-1] for name, values in run.metrics.items()}
    for run, first in zip(runs, runs.first_columns(), strict=True)
  ]


def _of_findings(findings: Sequence[Finding]) -> Rows:
  return [
    {
      'claim': finding.claim.claim,
      'source': finding.claim.source,
      'published': finding.claim.published,
      'measured': finding.claim.measured,
      'this': finding.this,
      'that': finding.that,
      'difference': finding.this - finding.that,
      'low': finding.interval[0],
      'high': finding.interval[1],
      'seeds': len(finding.differences),
      'verdict': finding.verdict,
      'left_out': finding.left_out,
    }
    for finding in findings
  ]


def _names(rows: Rows) -> list[str]:
  return list(dict.fromkeys(name for row in rows for name in row))


def _json(rows: Rows) -> str:
  # JSON has neither NaN nor infinity. Both become null.
  is_nan = lambda value: isinstance(value, float) and not math.isfinite(value)
  clean = [
    {k: None if is_nan(v) else v for k, v in row.items()} for row in rows
  ]
  return json.dumps(clean, indent=2, allow_nan=False) + '\n'


def _markdown(rows: Rows) -> str:
  names = _names(rows)
  lines = [names, ['---'] * len(names)]
  lines += [[_cell(row.get(name, '')) for name in names] for row in rows]
  # A bar ends a cell of a Markdown table.
  escaped = ([cell.replace('|', '\\|') for cell in line] for line in lines)
  return ''.join(f'| {" | ".join(line)} |\n' for line in escaped)


# Characters with a meaning in LaTeX. `str.translate` replaces all characters in
# a single pass. A second pass would escape the backslashes and the braces of
# the first pass again.
_OF_LATEX = str.maketrans(
  {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    **{character: f'\\{character}' for character in '&%$#_{}'},
  }
)


def _latex(rows: Rows) -> str:
  names = _names(rows)
  lines = [names] + [
    [_cell(row.get(name, '')) for name in names] for row in rows
  ]
  texts = [
    ' & '.join(cell.translate(_OF_LATEX) for cell in line) + r' \\' + '\n'
    for line in lines
  ]
  head, *body = texts
  columns = 'l' * len(names)
  return (
    f'\\begin{{tabular}}{{{columns}}}\n\\hline\n{head}\\hline\n{"".join(body)}'
    '\\hline\n\\end{tabular}\n'
  )


def _cell(value: Any) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)


KINDS: dict[str, tuple[str, Callable[[Rows], str]]] = {
  'csv': ('csv', csv_of),
  'json': ('json', _json),
  'latex': ('tex', _latex),
  'markdown': ('md', _markdown),
}
"""Formats by name: a file suffix, and a function from rows to text."""
