"""From `config.model.norm` to a normalization: a preset, and chosen axes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from bn_research import errors, norms, registry

Choices = Mapping[str, Any]


def create(where: str, section: Any) -> norms.Normalizer:
  """Builds the normalization that a section of a config describes.

  Args:
    where: The place of the section, for messages: `'config.model.norm'`.
    section: A name, or a dict with `name` and options. The name is a key of
      `norms.NAMES`, or `module:attribute`. The keys `scope`, `map`,
      `population` and `gradient` of a dict are each a name, or a dict with
      `name` and options, of a choice on this axis. A choice replaces the choice
      of the named normalization. The names `chain` and `mixture` take `parts`,
      a list of sections, or a dict of sections in the order of their keys, such
      as `a` and `b`; `coloured` takes `normalization`, a section.

  Raises:
    UserError: If a name or an option is unknown, if choices do not fit each
      other, or if an option has no effect, because its axis is replaced.
  """
  name, options = registry.split(section)
  chosen = {axis: options.pop(axis) for axis in norms.AXES if axis in options}
  factory = registry.find(where, norms.NAMES | norms.COMBINATIONS, name)
  if name in norms.COMBINATIONS:
    options = _with_parts(where, options)
  choices = {
    axis: _choice(f'{where}.{axis}', norms.AXES[axis], part)
    for axis, part in chosen.items()
  }

  options = _with_schedules(where, options)
  call = functools.partial(registry.call, where, factory, name)
  preset = call(options)
  with registry.mistakes_in(where):
    normalization = _replaced(preset, choices)
  for key in options if choices else ():
    _check_effect(where, key, preset, options, call, choices)
  return normalization


def _choice(where: str, table: Mapping[str, Any], section: Any) -> Any:
  """Returns a choice on one axis; a population may hold a population."""
  name, options = registry.split(section)
  if 'population' in options:
    part = options['population']
    options['population'] = _choice(f'{where}.population', table, part)
  options = _with_schedules(where, options)
  found = registry.find(where, table, name)
  of_functions = (norms.AXES['gradient'], norms.SCHEDULES)
  takes_functions = any(table is other for other in of_functions)
  is_function = takes_functions and not isinstance(found, type)
  if found is None or is_function:
    registry.check_keys(f'{where}={name}', options, ())
    return found
  return registry.call(where, found, name, options)


def _with_schedules(where: str, options: Choices) -> dict[str, Any]:
  """Returns options, with a schedule in place of each section."""
  return {
    key: _choice(f'{where}.{key}', norms.SCHEDULES, value)
    if registry.is_section(value)
    else value
    for key, value in options.items()
  }


def _with_parts(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options of a combination, with its normalizations built."""
  built = dict(options)
  if 'normalization' in built:
    section = built['normalization']
    built['normalization'] = create(f'{where}.normalization', section)
  if 'parts' in built:
    parts = built['parts']
    if isinstance(parts, str):
      raise errors.UserError(
        f'{where}.parts={parts!r} is no list; give {where}.parts.a.name={parts}'
      )
    if registry.is_section(parts):
      # Not in the order of the config, which a comparison of configs ignores.
      parts = {key: parts[key] for key in sorted(parts)}
    else:
      parts = {str(k): part for k, part in enumerate(parts)}
    built['parts'] = tuple(
      create(f'{where}.parts.{key}', part) for key, part in parts.items()
    )
  return built


def _replaced(preset: Any, choices: Choices) -> Any:
  """Returns a normalization, or a combination of some, with other choices."""
  if not choices:
    return preset
  if isinstance(preset, norms.Normalization):
    return dataclasses.replace(preset, **choices)
  if hasattr(preset, 'with_parts'):
    return preset.with_parts(
      tuple(_replaced(part, choices) for part in preset.parts)
    )
  raise ValueError(
    f'{type(preset).__name__} is not made of choices on the four axes, and'
    f' takes no {", ".join(choices)}'
  )


def _check_effect(
  where: str,
  key: str,
  preset: Any,
  options: Mapping[str, Any],
  call: Callable[[Mapping[str, Any]], Any],
  choices: Choices,
) -> None:
  """Raises a UserError if an option is of an axis that is replaced."""
  try:
    without = call({k: v for k, v in options.items() if k != key})
  except errors.UserError:
    return  # The preset needs this option.
  if without != preset and _replaced(without, choices) == _replaced(
    preset, choices
  ):
    raise errors.UserError(
      f'{where}.{key} has no effect, because {where} gives another'
      f' {", ".join(choices)}; give {key}=None, or an option of that choice'
    )
