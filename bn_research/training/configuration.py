"""The config of a run: checked once, written down, compared when resumed."""

import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from typing import Any

import jax

import bn_research
from bn_research import disk, dotted, errors, workdir
from bn_research.training import schedule

_INT32 = 2**31 - 1  # Steps and examples are counted in it.
_WHOLE_NUMBERS = {
  'seed': (0, 2**32 - 1),
  'num_steps': (1, _INT32),
  'batch_size': (1, _INT32),
  'num_devices': (1, _INT32),
  'eval.num_points': (1, 10**6),
  'probe.unit': (0, _INT32),
  'probe.num_examples': (1, _INT32),
  'probe.num_points': (1, 10**6),
}
_OTHERS = (
  'data.name',
  'model.name',
  'model.norm.name',
  'optimizer.name',
  'optimizer.learning_rate',
  'eval.spacing',
  'probe.name',
  'probe.spacing',
  'checkpoint_seconds',
)


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
  """Checks a config and returns it as nested dicts of plain values.

  Args:
    config: A ConfigDict, or nested dicts.

  Raises:
    UserError: If a key is missing or its value is out of range.
  """
  resolved = _plain(config)
  flat = dotted.flatten(resolved)
  for key in (*_WHOLE_NUMBERS, *_OTHERS):
    if flat.get(key) is None:
      raise errors.UserError(f'the config has no value for {key!r}')
  for key, (least, most) in _WHOLE_NUMBERS.items():
    value = flat[key]
    if not isinstance(value, int) or not least <= value <= most:
      raise errors.UserError(
        f'{key}={value!r}; choose a whole number from {least} to {most:,}'
      )
  if not flat['checkpoint_seconds'] >= 0:
    raise errors.UserError(
      f'checkpoint_seconds={flat["checkpoint_seconds"]}; choose at least 0'
    )
  for key in ('eval', 'probe'):
    schedule.measured(resolved, key)
  return resolved


def write(directory: disk.PathLike, config: Mapping[str, Any]) -> None:
  """Writes `config.json`: the config, and all that it ran with."""
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
  record = {
    'config': config,
    'versions': {
      'python': platform.python_version(),
      'bn_research': bn_research.__version__,
      **{name: importlib.metadata.version(name) for name in packages},
    },
    'devices': [str(device) for device in jax.devices()],
    'command': sys.argv,
  }
  disk.write_json(f'{directory}/{workdir.CONFIG}', record)


def _plain(value: Any) -> Any:
  if hasattr(value, 'items'):
    return {key: _plain(item) for key, item in value.items()}
  return value
