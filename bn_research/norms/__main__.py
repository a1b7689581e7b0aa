"""Prints the table of normalizations: `python -m bn_research.norms [NAME]`."""

import argparse
import inspect
import signal
import sys

from bn_research.norms.methods.names import NAMES
from bn_research.norms.normalization import Normalization

_EXAMPLES = {'virtual_batch_norm': {'reference_size': 8}}


def main(argv: list[str]) -> int:
  """Prints the table, or the help for one name.

  Args:
    argv: Arguments of the command line, without the program.

  Returns:
    The exit status: 0, or 2 for an unknown name.
  """
  parser = argparse.ArgumentParser('python -m bn_research.norms')
  parser.add_argument(
    'name', nargs='?', help='print the help for this name, not the table'
  )
  name = parser.parse_args(argv).name
  if name is None:
    print(table())
    return 0
  if name not in NAMES:
    print(
      f'error: unknown normalization {name!r}; there are: {", ".join(NAMES)}.',
      file=sys.stderr,
    )
    return 2
  factory = NAMES[name]
  print(f'{name}{inspect.signature(factory)}\n')
  print(inspect.getdoc(factory))
  return 0


def table() -> str:
  """Returns the table: a row for each name, and a column for each axis."""
  rows: list[tuple[str, ...]] = [
    ('name', 'scope', 'map', 'population', 'gradient')
  ]
  for name, factory in NAMES.items():
    rows.append((name, *axes(factory(**_EXAMPLES.get(name, {})))))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(map(str.ljust, row, widths)).rstrip() for row in rows
  )


def axes(normalization) -> tuple[str, ...]:
  """Returns the choice on each axis, as a short expression of Python."""
  if not isinstance(normalization, Normalization):
    return (_brief(normalization), '-', '-', '-')
  gradient = normalization.gradient
  return (
    _brief(normalization.scope),
    _brief(normalization.map),
    _brief(normalization.population),
    getattr(gradient, '__name__', type(gradient).__name__),
  )


def _brief(value) -> str:
  """Returns a dataclass as text, with the fields that differ from a default."""
  if value is None:
    return 'nothing'
  defaults = type(value).__dataclass_fields__
  given = (
    f'{field}={getattr(value, field)!r}'
    for field in defaults
    if field not in ('epsilon', 'population')
    and getattr(value, field) != defaults[field].default
  )
  return f'{type(value).__name__}({", ".join(given)})'


if __name__ == '__main__':
  # Python ignores SIGPIPE and raises an error instead. With the default action
  # a pipe into `head` ends the program in silence.
  if hasattr(signal, 'SIGPIPE'):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
  sys.exit(main(sys.argv[1:]))
