"""Configs as nested dicts, and as flat dicts with dotted keys.

A dotted key is the key of a flag: `--config.model.norm.name=none`.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

# Sections of parts, in which the name of a part is the key by default.
_BY_KEY = ('data.augment', 'probes')


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a nested config as a flat dict: `{'model.norm.name': 'none'}`.

  Args:
    config: A nested config, with text keys.

  Returns:
    The values by dotted key. An empty section has no entry.
  """
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      inner = flatten(value)
      flat.update({f'{key}.{name}': leaf for name, leaf in inner.items()})
    else:
      flat[key] = value
  return flat


def changed(
  config: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns a copy of a nested config with other values.

  Args:
    config: A nested config, with text keys.
    changes: Values by dotted key. Each section of a key is in the config.
  """
  result = copy.deepcopy(dict(config))
  for key, value in changes.items():
    *parents, name = key.split('.')
    section = result
    for parent in parents:
      section = section[parent]
    section[name] = value
  return result


def empty_sections(config: Mapping[str, Any], at: str = '') -> Iterator[str]:
  """Yields the dotted key of each section without keys.

  Args:
    config: A nested config, with text keys.
    at: The dotted key of `config`, with a dot at the end.
  """
  for key, value in config.items():
    if isinstance(value, Mapping):
      if not value:
        yield f'{at}{key}'
      yield from empty_sections(value, f'{at}{key}.')


def with_names(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a nested config in which each part of `probes` etc. has a name.

  In the sections `probes` and `data.augment`, a part without a name has the key
  as the name. In the result, `{'probes': {'gradients': {}}}` has become
  `{'probes': {'gradients': {'name': 'gradients'}}}`.

  Args:
    config: A nested config, with text keys.
  """
  return _with_names(config, '')


def _with_names(section: Mapping[str, Any], at: str) -> dict[str, Any]:
  found = {}
  for key, value in section.items():
    if isinstance(value, Mapping):
      value = _with_names(value, f'{at}{key}.')
      if at.rstrip('.') in _BY_KEY and value.get('name') is None:
        value = {**value, 'name': key}
    found[key] = value
  return found
