"""Configs as flat dicts with dotted keys, as in `--config.key=value`."""

from collections.abc import Iterator, Mapping
from typing import Any


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
