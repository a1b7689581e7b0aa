"""Writes `config.json`: the config, the dataset, and every start of a run."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import bn_research
from bn_research import disk, errors, json_text, workdir
from bn_research.training import feeding


def write(
  directory: disk.PathLike,
  config: Mapping[str, Any],
  dataset: feeding.Dataset,
  about: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes `config.json`, and keeps the earlier starts of the run.

  Args:
    directory: The workdir.
    config: The resolved config.
    dataset: The dataset of the run.
    about: Further facts of this start, which may replace the usual facts.

  Returns:
    The content of `config.json`. `lengths` contains the earlier numbers of
    steps of an extended run.

  Raises:
    UserError: If `config.json` exists and is damaged or of an unknown format,
      or if the file cannot be written.
  """
  # A `config.json` of an older version may have no `lengths` and no `starts`.
  earlier: dict[str, Any] = {'lengths': [], 'starts': []}
  if workdir.has_config(directory):
    earlier |= workdir.read_record(directory)
  described = _described(dataset)
  _check_same(directory, earlier, described)
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
    **about,
  }
  record = {
    'format': workdir.FORMAT,
    'config': config,
    'dataset': described,
    'x64': _has_x64(),
    'lengths': _lengths(earlier, config),
    'starts': [*earlier['starts'], start],
  }
  write_whole(directory, record)
  return record


def _has_x64() -> bool:
  return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


def _described(dataset: feeding.Dataset) -> dict[str, Any]:
  return {
    'name': dataset.name,
    'version': dataset.version,
    'num_train': dataset.num_examples['train'],
    'num_test': dataset.num_examples['test'],
    'shape': list(dataset.input_shape),
    'num_classes': dataset.num_classes,
  }


def _check_same(
  directory: disk.PathLike,
  earlier: Mapping[str, Any],
  dataset: Mapping[str, Any],
) -> None:
  """Raises a UserError if a run would go on with other data or other types."""
  now = {**dataset, 'JAX_ENABLE_X64': _has_x64()}
  before = {**earlier.get('dataset', {})}
  if 'x64' in earlier:
    before['JAX_ENABLE_X64'] = earlier['x64']
  differing = [
    f'{key}={value} there and {now[key]} here'
    for key, value in before.items()
    if key in now and value != now[key]
  ]
  if differing:
    raise errors.UserError(
      f'{directory} holds a run on other data or types'
      f' ({"; ".join(differing)}); choose another --workdir'
    )


def write_whole(directory: disk.PathLike, record: Mapping[str, Any]) -> None:
  """Writes a whole record, with a digest."""
  disk.write_json(
    disk.path(directory, workdir.CONFIG), json_text.sealed(record)
  )


def _lengths(
  earlier: Mapping[str, Any], config: Mapping[str, Any]
) -> list[int]:
  """Returns the earlier numbers of steps of an extended run."""
  # A start with the same number of steps continues the run without extension.
  before = earlier.get('config', config)['num_steps']
  lengths = [*earlier['lengths'], before]
  # A run may also go back to an earlier length, and then forgets later lengths.
  return [length for length in lengths if length < config['num_steps']]


def _revision() -> dict[str, Any] | None:
  """Returns the git revision of the package; None outside of a repository."""
  folder = pathlib.Path(bn_research.__file__).parent

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', '-C', str(folder), *arguments],
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  try:
    # The package may be installed in a folder of an unrelated repository.
    # `--error-unmatch` fails for a file outside of the tracked files.
    if git('ls-files', '--error-unmatch', '__init__.py'):
      is_clean = not git('status', '--porcelain', '--', '.')
      return {'commit': git('rev-parse', 'HEAD'), 'is_clean': is_clean}
  except (OSError, subprocess.CalledProcessError):
    pass  # Git is missing, or the package is an installed copy.
  return None
