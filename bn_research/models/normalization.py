"""Builds the normalization of `config.model.norm` from a preset and choices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from bn_research import errors, norms, registry
from bn_research.layers import normalizers

Choices = Mapping[str, Any]


def create(where: str, section: Any) -> norms.Normalizer:
  """Builds the normalization of a section of a config.

  Args:
    where: The place of the section, for messages: `'config.model.norm'`.
    section: A name, or a dict with `name` and options. The name is a key of
      `norms.NAMES`, or `module:attribute`. Each of the keys `scope`, `map`,
      `population` and `gradient` of a dict holds a choice on this axis: a name,
      or a dict with `name` and options. The choice replaces the choice of the
      named normalization. The names `chain` and `mixture` take `parts`: a list
      of sections, or a dict of sections. The keys of the dict, for example `a`
      and `b`, are sorted. The name `coloured` takes `normalization`, a section.

  Returns:
    The normalization.

  Raises:
    UserError: If a name or an option is unknown, if choices do not fit
      together, or if an option has no effect because a choice replaces the axis
      of the option.
  """
  name, options = registry.split(section)
  chosen = {axis: options.pop(axis) for axis in norms.AXES if axis in options}
  factory = registry.find(where, norms.NAMES | norms.COMBINATIONS, name)
  if factory is norms.none:
    _check_known(where, options)
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
    normalizers.require(preset, f'the result of {name!r}')
    normalization = _replaced(preset, choices)
  for key in options if choices else ():
    _check_effect(where, key, preset, options, call, choices)
  return normalization


def _check_known(where: str, options: Choices) -> None:
  """Raises a UserError if an option of `none` is an option of no name."""
  known: dict[str, None] = {}
  for factory in (norms.NAMES | norms.COMBINATIONS).values():
    parameters = registry.signature(factory).values()
    # `**ignored` of `none` stands for all names, and is no option.
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    known |= dict.fromkeys(named)
  for key in options.keys() - known.keys():
    raise errors.UserError(
      f'{where}: no normalization has an option {key!r}'
      f'{registry.hint(key, known)}'
    )


def _choice(where: str, table: Mapping[str, Any], section: Any) -> Any:
  """Returns a choice of a table; a population may hold a population."""
  name, options = registry.split(section)
  if 'population' in options:
    part = options['population']
    options['population'] = _choice(f'{where}.population', table, part)
  options = _with_schedules(where, options)
  found = registry.find(where, table, name)
  # A function for a gradient policy or for a schedule is the choice, and not a
  # factory of the choice. The function therefore takes no options. None is the
  # choice of no population.
  of_functions = (norms.AXES['gradient'], norms.SCHEDULES)
  takes_functions = any(table is other for other in of_functions)
  is_function = takes_functions and not isinstance(found, type)
  if found is None or is_function:
    registry.check_keys(f'{where}={name}', options, ())
    return found
  return registry.call(where, found, name, options)


def _with_schedules(where: str, options: Choices) -> dict[str, Any]:
  """Returns options with a schedule in place of each section."""
  return {
    key: _choice(f'{where}.{key}', norms.SCHEDULES, value)
    if registry.is_section(value)
    else value
    for key, value in options.items()
  }


def _with_parts(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options of a combination, with the parts as normalizations."""
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
      # A comparison of configs ignores the order of keys. Two equal configs
      # must give the same normalization, hence the sorted keys.
      parts = {key: parts[key] for key in sorted(parts)}
    else:
      parts = {str(k): part for k, part in enumerate(parts)}
    built['parts'] = tuple(
      create(f'{where}.parts.{key}', part) for key, part in parts.items()
    )
  return built


def _replaced(preset: Any, choices: Choices) -> Any:
  """Returns a normalization, or a combination, with the choices in place."""
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
  """Raises a UserError if a choice replaces the axis of an option."""
  # A preset does not declare the axis of an option. The check hence compares
  # the presets with and without the option: the option has no effect if the
  # presets differ, but are equal after the choices.
  try:
    without = call({k: v for k, v in options.items() if k != key})
    replaced = _replaced(without, choices)
  except (errors.UserError, ValueError):
    return  # The preset, or a choice, needs this option.
  if without != preset and replaced == _replaced(preset, choices):
    raise errors.UserError(
      f'{where}.{key} has no effect, because {where} gives another'
      f' {", ".join(choices)}; give {key}=None, or an option of that choice'
    )
