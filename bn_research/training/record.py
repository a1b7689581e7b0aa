"""What a workdir says of its run: the config, the data, and every start."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax

import bn_research
from bn_research import data, disk, workdir


def write(
  directory: disk.PathLike, config: Mapping[str, Any], dataset: data.Dataset
) -> dict[str, Any]:
  """Writes `config.json`: the config, the data, and each start of the run.

  Args:
    directory: The workdir.
    config: The resolved config.
    dataset: What the run trains on.

  Returns:
    What is written; its `lengths` are earlier lengths of an extended run.

  Raises:
    UserError: If the workdir was written in a format that is not known here.
  """
  earlier: dict[str, Any] = {'lengths': [], 'starts': []}
  if workdir.has_config(directory):
    earlier |= workdir.read_record(directory)
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
  start = {
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'versions': {
      'python': platform.python_version(),
      'bn_research': bn_research.__version__,
      **{name: importlib.metadata.version(name) for name in packages},
    },
    'revision': _revision(),
    'devices': [str(device) for device in jax.devices()],
    'command': sys.argv,
  }
  record = {
    'format': workdir.FORMAT,
    'config': config,
    'dataset': {
      'name': dataset.name,
      'version': dataset.version,
      'num_train': len(dataset.train.labels),
      'num_test': len(dataset.test.labels),
      'shape': dataset.train.images.shape[1:],
      'num_classes': dataset.num_classes,
    },
    'lengths': _lengths(earlier, config),
    'starts': [*earlier['starts'], start],
  }
  disk.write_json(f'{directory}/{workdir.CONFIG}', record)
  return record


def _lengths(
  earlier: Mapping[str, Any], config: Mapping[str, Any]
) -> list[int]:
  """Returns the earlier lengths of a run that was extended."""
  before = earlier.get('config', config)['num_steps']
  is_longer = before < config['num_steps']
  return [*earlier['lengths'], *([before] if is_longer else [])]


def _revision() -> dict[str, Any] | None:
  """Returns the git revision of this code; None outside of a repository."""
  folder = pathlib.Path(bn_research.__file__).parent

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', '-C', str(folder), *arguments],
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  try:
    if git('ls-files', '--error-unmatch', '__init__.py'):
      is_clean = not git('status', '--porcelain', '--', '.')
      return {'commit': git('rev-parse', 'HEAD'), 'is_clean': is_clean}
  except (OSError, subprocess.CalledProcessError):
    pass  # no git, or an installed copy
  return None
