"""Changes a config by dotted keys, from a command line or from a sweep.

A part of a config, for example `model.norm`, is open: a change may add an
option that the config file does not list. Only the construction of the part
checks whether the option exists. The root and `eval` are closed: no change may
add a key to the keys of `experiment.base()`. A text in the place of a part is
short for the name of the part.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import config_dict

from bn_research import dotted, errors, registry

CLOSED = ('', 'eval')
"""The sections to which no change may add a key."""


_KEY = r'[A-Za-z_]\w*(\.\w+)*'
# The user chooses the keys of these sections.
_MAPS = ('probes', 'model.norms', 'data.augment')
# The name of a part, or None, can become a section if a change needs a section.
_PARTS = (config_dict.ConfigDict, str, type(None))
_MOST_BITS = 1023  # All whole numbers of so many bits have a float.
_OF_NUMPY = {'b': 'bool', 'i': 'int', 'u': 'int', 'f': 'float'}


def apply(
  config: config_dict.ConfigDict, changes: Mapping[str, Any], where: str
) -> None:
  """Changes a config in place.

  Args:
    config: The config.
    changes: Values by dotted key. None leaves an option to the default of the
      part.
    where: The source of the changes, for messages: `'sweep()'`.

  Raises:
    UserError: If a key does not exist in a closed section, if the type of a
      value differs from the type of the old value, or if a file cannot hold
      the value.
  """
  # A change of a whole section becomes a change of each key, as by flags. Keys
  # outside of the change then keep the values.
  _check_no_empty(config, changes, where)
  changes = dotted.flatten(changes)
  for key, value in changes.items():
    key = meant(config, key, changes, value)
    check_value(where, key, value)
    make_room(config, key)
    section, _, name = key.rpartition('.')
    parent = at(config, section)
    try:
      if value is None:
        set_none(parent, name)
      else:
        # ConfigDict raises a TypeError for a value of a different type.
        with parent.unlocked():
          parent[name] = value
    except TypeError as error:
      raise errors.UserError(
        f'{where} gives {key!r} the value {value!r}, of another type than the'
        ' config has there'
      ) from error


def _check_no_empty(
  config: config_dict.ConfigDict, changes: Mapping[str, Any], where: str
) -> None:
  """Raises a UserError for a new section without keys.

  Such a section would have no key to change, and a part without options, for
  example `flip`, would be left out in silence.
  """
  for key in dotted.empty_sections(changes):
    if not isinstance(at(config, key), config_dict.ConfigDict):
      name = key.rpartition('.')[2]
      raise errors.UserError(
        f'{where} gives {key!r} an empty section; give a key of the section,'
        f' such as {key}.name={name!r}'
      )


def check_value(where: str, key: str, value: Any) -> None:
  """Checks that a file can hold a value of a config.

  Args:
    where: The source of the value, for messages: `'sweep()'`.
    key: The dotted key of the value.
    value: The value, or a reference of ml_collections to a value.

  Raises:
    UserError: If the value is no number, text, list, tuple, dict or None, or if
      the value is a whole number that is too large for a float.
  """
  if isinstance(value, config_dict.FieldReference):
    value = value.get()
  if registry.is_section(value):
    value = [item for _, item in value.items()]
  if isinstance(value, list | tuple):
    for item in value:
      check_value(where, key, item)
  elif value is not None and not isinstance(value, int | float | str):
    raise errors.UserError(
      f'{where} gives {key!r} a {type(value).__name__}; give {_plain(value)}'
    )
  elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
    raise errors.UserError(
      f'{where} gives {key!r} a number of {value.bit_length()} bits; give a'
      ' smaller number'
    )


def _plain(value: Any) -> str:
  """Returns what to give in place of a value, for a message."""
  kind = getattr(getattr(value, 'dtype', None), 'kind', None)
  if kind in _OF_NUMPY:
    return 'array.tolist()' if value.ndim else f'{_OF_NUMPY[kind]}(...)'
  return 'a number, a text, a list, a tuple or None'


def meant(
  config: config_dict.ConfigDict, key: str, keys: Iterable[str], value: Any
) -> str:
  """Returns the key to change: `KEY.name` if `KEY` is a part, or else `KEY`.

  Args:
    config: The config.
    key: The dotted key of the change.
    keys: The dotted keys of all changes.
    value: The value of the change.

  Returns:
    The dotted key to change.

  Raises:
    UserError: If the key is not a dotted name, if the value is a section in the
      form of a text, or if the key is a section of sections.
  """
  if not re.fullmatch(_KEY, key):
    raise errors.UserError(
      f'{key!r} is no key of a config; a key is made of letters, digits and _,'
      ' with dots between'
    )
  if value is None or isinstance(value, Mapping):
    return key
  if key in _MAPS and value == '{}':
    raise errors.UserError(f'{key}={{}} is an empty section; give {key}=None')
  if isinstance(value, str) and value.startswith('{'):
    raise errors.UserError(
      f'{key}={value} is a section; give its keys one by one, as'
      f' {key}.name=VALUE'
    )
  if key in _MAPS:
    raise errors.UserError(
      f'{key} is a section of sections, and not {value!r}; give'
      f' {key}.KEY.name={value}'
    )
  # A key is also a part if a second change, before or after this change, sets
  # an option of the part.
  is_part = any(other.startswith(f'{key}.') for other in keys)
  if is_part or isinstance(at(config, key), config_dict.ConfigDict):
    return f'{key}.name'
  return key


def make_room(config: config_dict.ConfigDict, key: str) -> None:
  """Creates the missing sections of a dotted key, for a later change.

  Args:
    config: The config, changed in place.
    key: The dotted key.

  Raises:
    UserError: If a closed section does not have the key, or if the path of the
      key contains a value which is not a section.
  """
  section, way = config, list[str]()
  *parents, last = key.split('.')
  for name in parents:
    check_key(section, '.'.join(way), name)
    way.append(name)
    inside = section.get(name)
    if name == 'name' or not isinstance(inside, _PARTS):
      raise errors.UserError(
        f'unknown config key {key!r}; {".".join(way)} is no section'
      )
    # A text in the place of a part becomes the name in the new section.
    if not isinstance(inside, config_dict.ConfigDict):
      inside = config_dict.ConfigDict(
        {} if inside is None else {'name': inside}
      )
      _replace(section, name, inside)
    section = section[name]
  check_key(section, '.'.join(way), last)


def check_key(section: Mapping[str, Any], path: str, name: str) -> None:
  """Raises a UserError if a closed section does not have a key."""
  if path in CLOSED and name not in section:
    key = f'{path}.{name}' if path else name
    raise errors.UserError(
      f'unknown config key {key!r}{registry.hint(name, section)}; there are'
      f' {", ".join(sorted(section))}'
    )


def at(config: config_dict.ConfigDict, key: str) -> Any:
  """Returns the value at a dotted key, or None for a missing key."""
  node: Any = config
  for name in key.split('.') if key else ():
    if not isinstance(node, config_dict.ConfigDict):
      return None
    node = node.get(name)
  return node


def clear(config: config_dict.ConfigDict, key: str) -> None:
  """Replaces the section at a dotted key by an empty section."""
  make_room(config, key)
  section, _, name = key.rpartition('.')
  _replace(at(config, section), name, config_dict.ConfigDict())


def set_none(section: config_dict.ConfigDict, name: str) -> None:
  """Sets a key to None, whatever the type of the old value."""
  # The placeholder keeps the key open for a later value of any type.
  _replace(section, name, config_dict.placeholder(object))


def _replace(section: config_dict.ConfigDict, name: str, value: Any) -> None:
  with section.unlocked(), section.ignore_type():
    section[name] = value
