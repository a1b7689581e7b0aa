"""Prints the table of normalizations: `python -m bn_research.norms [NAME]`.

With a name, prints the help for this name, and the flags of a run that choose
the same normalization axis by axis.
"""

import argparse
import dataclasses
import inspect
import shlex
import signal
import sys
from collections.abc import Iterator
from string import ascii_lowercase
from typing import Any

from bn_research.norms.methods.names import AXES, COMBINATIONS, NAMES, SCHEDULES
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
  flags = [
    # Texts within a tuple get quotes that a shell leaves alone.
    shlex.quote(f'--config.model.norm.{key}={value}'.replace("'", '"'))
    for key, value in settings(factory(**_EXAMPLES.get(name, {})))
  ]
  if flags:
    print('\nThe same, axis by axis, as flags of a run:\n')
    print(' \\\n'.join(flags))
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


def settings(normalization: Any) -> Iterator[tuple[str, Any]]:
  """Yields keys and values of `config.model.norm` for a normalization.

  Args:
    normalization: A `Normalization`, or a combination of some. There are no
      settings for a class that is not made of choices on the axes.
  """
  if isinstance(normalization, Normalization):
    yield 'name', 'none'
    for axis, choices in AXES.items():
      value = getattr(normalization, axis)
      yield from _choice(axis, choices, value)
  for name, kind in COMBINATIONS.items():
    if type(normalization) is kind:
      yield 'name', name
      is_one = 'normalization' in kind.__dataclass_fields__
      for k, part in enumerate(normalization.parts):
        place = 'normalization' if is_one else f'parts.{ascii_lowercase[k]}'
        for key, value in settings(part):
          yield f'{place}.{key}', value


def _choice(
  place: str, choices: dict[str, Any], value: Any
) -> Iterator[tuple[str, Any]]:
  """Yields the name of a choice, and the fields that differ from a default."""
  names = (n for n, kind in choices.items() if kind in (value, type(value)))
  yield f'{place}.name', next(names)
  if not dataclasses.is_dataclass(value):
    return
  for field in dataclasses.fields(value):
    inner = getattr(value, field.name)
    if field.name == 'population' and inner is not None:
      yield from _choice(f'{place}.population', choices, inner)
    elif type(inner) in SCHEDULES.values():
      yield from _choice(f'{place}.{field.name}', SCHEDULES, inner)
    elif inner != field.default:
      yield f'{place}.{field.name}', inner


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
