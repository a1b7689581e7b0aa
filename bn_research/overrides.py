"""Changes of a config by dotted key, from a command line or from a sweep.

A part of a config, such as `model.norm`, is open: a change may add an option
that the config file does not list. Whether the part has such an option is known
where the part is built. The root and `eval` are closed: their keys are those of
`experiment.base()`. A text in the place of a part is short for its name.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import config_dict

from bn_research import dotted, errors, registry

CLOSED = ('', 'eval')
"""The sections in which a change may add no key."""


_KEY = r'[A-Za-z_]\w*(\.\w+)*'
_MAPS = ('probes', 'model.norms')  # sections by keys that a user chooses
_PARTS = (config_dict.ConfigDict, str, type(None))


def apply(
  config: config_dict.ConfigDict, changes: Mapping[str, Any], where: str
) -> None:
  """Changes a config in place.

  Args:
    config: The config.
    changes: Values by dotted key. None leaves an option to its default.
    where: The source of the changes, for messages: `'sweep()'`.

  Raises:
    UserError: If a key does not exist in a closed section, or if a value is of
      another type than the config has there.
  """
  # A section is changed key by key, as flags would change it.
  changes = dotted.flatten(changes)
  for key, value in changes.items():
    key = meant(config, key, changes, value)
    make_room(config, key)
    section, _, name = key.rpartition('.')
    parent = at(config, section)
    try:
      if value is None:
        set_none(parent, name)
      else:
        with parent.unlocked():
          parent[name] = value
    except TypeError as error:
      raise errors.UserError(
        f'{where} gives {key!r} the value {value!r}, of another type than the'
        ' config has there'
      ) from error


def meant(
  config: config_dict.ConfigDict, key: str, keys: Iterable[str], value: Any
) -> str:
  """Returns the key that a change means: a part's name for the part itself.

  Args:
    config: The config.
    key: The dotted key of the change.
    keys: The dotted keys of all changes.
    value: The value of the change.

  Raises:
    UserError: If the key is no dotted name, or the value the text of a section.
  """
  if not re.fullmatch(_KEY, key):
    raise errors.UserError(
      f'{key!r} is no key of a config; a key is made of letters, digits and _,'
      ' with dots between'
    )
  if value is None or isinstance(value, Mapping):
    return key
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
  is_part = any(other.startswith(f'{key}.') for other in keys)
  if is_part or isinstance(at(config, key), config_dict.ConfigDict):
    return f'{key}.name'
  return key


def make_room(config: config_dict.ConfigDict, key: str) -> None:
  """Makes the sections of a dotted key, so that the key may be set.

  Raises:
    UserError: If the section of the key is closed and has no such key.
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
    if not isinstance(inside, config_dict.ConfigDict):
      inside = config_dict.ConfigDict(
        {} if inside is None else {'name': inside}
      )
      _replace(section, name, inside)
    section = section[name]
  check_key(section, '.'.join(way), last)


def check_key(section: Mapping[str, Any], path: str, name: str) -> None:
  """Raises a UserError if a section is closed and lacks a key."""
  if path in CLOSED and name not in section:
    key = f'{path}.{name}' if path else name
    raise errors.UserError(
      f'unknown config key {key!r}{registry.hint(name, section)}; there are'
      f' {", ".join(sorted(section))}'
    )


def at(config: config_dict.ConfigDict, key: str) -> Any:
  """Returns the value at a dotted key, or None where there is none."""
  node: Any = config
  for name in key.split('.') if key else ():
    if not isinstance(node, config_dict.ConfigDict):
      return None
    node = node.get(name)
  return node


def set_none(section: config_dict.ConfigDict, name: str) -> None:
  """Sets a key to None, of whatever type it was."""
  _replace(section, name, config_dict.placeholder(object))


def _replace(section: config_dict.ConfigDict, name: str, value: Any) -> None:
  with section.unlocked(), section.ignore_type():
    section[name] = value
