"""Configs as flat dicts with dotted keys, as in `--config.key=value`."""

from collections.abc import Mapping
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
