"""Keys that configs of older versions lack, with the values that are meant."""

from collections.abc import Mapping
from typing import Any

ADDED = {
  'label_smoothing': 0.0,
  'microbatches': 1,
  'eval.population': 'running',
  'eval.step_norms': 'last',
  'eval.weights': 'last',
  'parallel.form': 'jit',
  'parallel.model_devices': 1,
}
"""The values by dotted key."""


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config with all keys of `ADDED`.

  Args:
    config: A nested config, as an older version wrote the config. A value in
      the place of a section stays as it is.
  """
  result = dict(config)
  for key, value in ADDED.items():
    section, _, name = key.rpartition('.')
    if not section:
      result.setdefault(key, value)
    elif isinstance(result.setdefault(section, {}), Mapping):
      result[section] = {name: value, **result[section]}
  return result
