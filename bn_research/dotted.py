"""Configs by dotted key, as `--config.key=value` names them."""

from collections.abc import Mapping
from typing import Any


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a nested config as one dict: `{'model.norm.name': 'none'}`."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      inner = flatten(value)
      flat.update({f'{key}.{name}': leaf for name, leaf in inner.items()})
    else:
      flat[key] = value
  return flat
