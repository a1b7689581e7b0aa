"""Writes the tables of `config.md`: the keys of a config, from the code."""

import inspect
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import docstring_parser
from sphinx.application import Sphinx

from bn_research import (
  dotted,
  experiment,
  models,
  norms,
  optim,
  probes,
  registry,
)
from bn_research.data import augmentation, normalizing, streams
from bn_research.models import dense, stems
from bn_research.optim import averaging, clipping, optimizers, rates
from bn_research.reports import measures, panels

# The parts that each section of a config may name, and the arguments that the
# program gives in place of the config.
PARTS: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
  'data.augment.KEY': (augmentation.PARTS, ('images',)),
  'data.normalize': (normalizing.NORMALIZERS, ('inputs',)),
  'data.stream': ({'stream': streams.Options}, ()),
  'model': (
    models.MODELS,
    ('input_shape', 'num_classes', 'norm', 'dense', 'stem', 'rngs'),
  ),
  'model.dense': (dense.LAYERS, ()),
  'model.stem': (stems.STEMS, ()),
  'model.norm': (norms.NAMES | norms.COMBINATIONS, ()),
  **{f'model.norm.{axis}': (table, ()) for axis, table in norms.AXES.items()},
  'model.norm.OPTION': (norms.SCHEDULES, ()),
  'optimizer': (optim.OPTIMIZERS, ('learning_rate', 'precondition', 'mask')),
  'optimizer.schedule': (
    rates.SCHEDULES,
    ('learning_rate', 'num_steps', 'clock'),
  ),
  'optimizer.clip': (clipping.CLIPS, ()),
  'optimizer.average': (averaging.AVERAGES, ()),
  'optimizer.precondition': (optimizers.PRECONDITIONS, ()),
  'probes.KEY': (probes.PROBES, ('observation',)),
  'a panel of report()': (panels.PANELS, ()),
  'a measure of report()': (measures.MEASURES, ('run',)),
}
# A function of this section is the part itself, and no factory of the part.
_WITHOUT_OPTIONS = ('model.norm.gradient',)


def setup(app: Sphinx) -> dict[str, Any]:
  """Registers the writing of the tables, before Sphinx reads the pages."""
  app.connect('builder-inited', _write)
  return {'parallel_read_safe': True}


def _write(app: Sphinx) -> None:
  folder = pathlib.Path(app.srcdir, 'generated')
  folder.mkdir(exist_ok=True)
  for name, text in (('keys', keys()), ('parts', parts())):
    path = folder / f'{name}.md'
    # An unchanged file keeps its time, and Sphinx does not read it again.
    if not path.exists() or path.read_text() != text:
      path.write_text(text)


def keys() -> str:
  """Returns the table of the keys that are not options of a part."""
  defaults = dotted.flatten(experiment.base().to_dict())
  rows = [
    (f'`{key}`', _code(defaults[key]) if key in defaults else '', meaning)
    for key, meaning in experiment.KEYS.items()
  ]
  return _table(('key', 'base config', 'meaning'), rows)


def parts() -> str:
  """Returns a section for each part of a config, with a table of options."""
  lines = []
  for place, (table, given) in PARTS.items():
    lines.append(f'### `{place}`\n')
    for name, factory in table.items():
      lines.append(_part(place, name, factory, given))
  return '\n'.join(lines)


def _part(place: str, name: str, factory: Any, given: tuple[str, ...]) -> str:
  if factory is None:
    return f'**`{name}`**: nothing.\n'
  if not isinstance(factory, type) and place in _WITHOUT_OPTIONS:
    return f'**`{name}`**: {_summary(factory)}\n'
  rows = list(options(factory, given))
  text = f'**`{name}`**: {_summary(factory)}\n'
  if rows:
    text += '\n' + _table(
      ('option', 'default', 'meaning'),
      [(f'`{key}`', default, meaning) for key, default, meaning in rows],
    )
  return text


def options(
  factory: Any, given: tuple[str, ...]
) -> Iterator[tuple[str, str, str]]:
  """Yields the name, the default and the meaning of each option of a part."""
  meanings = {
    parameter.arg_name: ' '.join((parameter.description or '').split())
    for doc in (inspect.getdoc(factory), inspect.getdoc(factory.__init__))
    for parameter in docstring_parser.parse(
      doc or '', docstring_parser.DocstringStyle.GOOGLE
    ).params
  }
  for key, parameter in registry.signature(factory).items():
    if key in given or parameter.kind is parameter.VAR_KEYWORD:
      continue
    is_needed = parameter.default is parameter.empty
    default = 'needed' if is_needed else _code(parameter.default)
    yield key, default, meanings[key]


def _summary(factory: Any) -> str:
  """Returns the first sentence of a docstring."""
  return (inspect.getdoc(factory) or '').partition('\n\n')[0].replace('\n', ' ')


def _code(value: Any) -> str:
  name = getattr(value, '__name__', None)
  return f'`{name or repr(value)}`'


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  lines = [head, ('---',) * len(head), *rows]
  return (
    '\n'.join(
      # A bar would end the cell of a table, also within backticks.
      f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in row)} |'
      for row in lines
    )
    + '\n'
  )
