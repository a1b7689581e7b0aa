"""The files of one run: their names, how they are written, how they are read.

Imports the standard library and NumPy only, so that sweeps and reports read
workdirs without waiting for JAX.
"""

import dataclasses
import io
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from bn_research import disk, dotted, errors

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
STATUS = 'status.json'
PROBES = 'probes'
CHECKPOINTS = 'checkpoints'

FORMAT = 2
"""The format of what is written here; 1 had no number, and one start."""

INCOMPLETE = 'incomplete'
DONE = 'done'
DIVERGED = 'diverged'
FAILED = 'failed'


@dataclasses.dataclass(frozen=True)
class Status:
  """Where a run stands.

  Attributes:
    status: `INCOMPLETE`, `DONE`, `DIVERGED` or `FAILED`.
    step: Training steps completed when this was written.
    reason: Why the run stands here, in one line; empty where there is nothing
      to say.
  """

  status: str = INCOMPLETE
  step: int = 0
  reason: str = ''

  def towards(self, num_steps: int) -> 'Status':
    """Returns where the run stands on its way to a number of steps.

    A run that was done is incomplete when it is to be extended.
    """
    if self.status == DONE and self.step < num_steps:
      return Status(INCOMPLETE, self.step)
    return self


def write_status(workdir: disk.PathLike, status: Status) -> None:
  """Writes `status.json`."""
  disk.write_json(pathlib.Path(workdir, STATUS), dataclasses.asdict(status))


def read_status(workdir: disk.PathLike) -> Status:
  """Reads `status.json`; an absent or unreadable one is an incomplete run."""
  try:
    fields = json.loads(pathlib.Path(workdir, STATUS).read_text())
    return Status(
      str(fields['status']), int(fields['step']), str(fields['reason'])
    )
  except (OSError, ValueError, KeyError, TypeError):
    return Status()


def has_config(workdir: disk.PathLike) -> bool:
  """Whether a run has begun in this directory.

  Raises:
    UserError: If there can be no such directory.
  """
  with disk.writing(workdir):
    return pathlib.Path(workdir, CONFIG).exists()


def read_record(workdir: disk.PathLike) -> dict[str, Any]:
  """Reads `config.json` whole: the config and what it ran with.

  Returns:
    A dict with `format`, `config`, `dataset`, and `starts`: for each start of
    the run `time`, `versions`, `revision`, `devices` and `command`.

  Raises:
    UserError: If `workdir` holds no readable `config.json`, or one of a later
      format.
  """
  path = pathlib.Path(workdir, CONFIG)
  try:
    record = json.loads(path.read_text())
    record['config'].items()
  except OSError as error:
    raise errors.UserError(
      f'{path}: {error.strerror}; is this the workdir of a run?'
    ) from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f'{path} is damaged; remove it and train again'
    ) from error
  if record.get('format', 1) not in range(1, FORMAT + 1):
    raise errors.UserError(
      f'{path} has the format {record["format"]}, and this version knows'
      f' formats up to {FORMAT}; update, or choose another --workdir'
    )
  return record


def read_config(workdir: disk.PathLike) -> dict[str, Any]:
  """Reads the resolved config of a run as nested dicts.

  Raises:
    UserError: If `workdir` holds no readable `config.json`.
  """
  return read_record(workdir)['config']


def read_metrics(workdir: disk.PathLike) -> list[dict[str, Any]]:
  """Reads the rows of `metrics.jsonl`.

  Returns:
    One dict a row, in the order of steps; none where there is no file. Reading
    ends at a line that is none, as a killed run leaves one.
  """
  try:
    lines = pathlib.Path(workdir, METRICS).read_bytes().splitlines()
  except FileNotFoundError:
    return []
  rows = []
  for line in lines:
    try:
      row = json.loads(line)
      rows.append({**row, 'step': int(row['step'])})
    except (ValueError, KeyError, TypeError):
      break
  return rows


def truncate_metrics(workdir: disk.PathLike, step: int) -> list[dict[str, Any]]:
  """Drops the rows after `step`, and an unfinished last line.

  Returns:
    The rows kept.
  """
  rows = [row for row in read_metrics(workdir) if row['step'] <= step]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  path = pathlib.Path(workdir, METRICS)
  disk.write_atomically(path, lambda file: file.write(text.encode()))
  return rows


def write_probe(
  workdir: disk.PathLike, name: str, arrays: Mapping[str, np.ndarray]
) -> None:
  """Writes `probes/NAME.npz`.

  Args:
    workdir: Where the run writes.
    name: The name of the probe.
    arrays: `step` (k,) and one array a probed quantity.
  """
  # NumPy seeks while it writes; from memory the file is written in one go.
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)  # type: ignore[arg-type]
  path = pathlib.Path(workdir, PROBES, f'{name}.npz')
  disk.write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def read_probe(workdir: disk.PathLike, name: str) -> dict[str, np.ndarray]:
  """Reads `probes/NAME.npz`.

  Returns:
    The arrays by name; `step` (k,) says when the others were taken.

  Raises:
    UserError: If the run has no such probe, or the file is damaged.
  """
  path = pathlib.Path(workdir, PROBES, f'{name}.npz')
  try:
    # NumPy leaves a file open that it cannot read, unless it is ours.
    with open(path, 'rb') as file, np.load(file) as arrays:
      return dict(arrays)
  except FileNotFoundError as error:
    raise errors.UserError(
      f'{path} does not exist; train with the probe {name!r} first'
    ) from error
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise errors.UserError(
      f'{path} is damaged; remove the workdir and train again'
    ) from error


# May differ between a run and its continuation: they do not change the curve.
_FREE = ('num_devices', 'checkpoint_seconds')


def check_same_config(
  directory: disk.PathLike, config: Mapping[str, Any]
) -> None:
  """Checks that a workdir, if it has been used, was used for this config.

  The config may have a larger `num_steps`, if no schedule of the learning rate
  depends on the length of the run: the run is then extended.

  Raises:
    UserError: If it holds a run of another config; names the keys that differ.
  """
  if not has_config(directory):
    return
  there = read_config(directory)
  differing = differences(there, config)
  if differing.keys() == {'num_steps'}:
    if there['num_steps'] < config['num_steps'] and not _has_schedule(config):
      return
    differing['num_steps'] += (
      '; a run can only be extended, and only with a constant learning rate'
    )
  if differing:
    raise errors.UserError(
      f'{directory} holds a run of another config'
      f' ({"; ".join(differing.values())}); choose another --workdir'
    )


def _has_schedule(config: Mapping[str, Any]) -> bool:
  """Whether the learning rate depends on the length of the run."""
  schedule = config['optimizer'].get('schedule')
  name = schedule.get('name') if hasattr(schedule, 'get') else schedule
  return name not in (None, 'constant')


def differences(
  there: Mapping[str, Any], here: Mapping[str, Any]
) -> dict[str, str]:
  """Compares the config of a run with one that is asked for.

  A key that is absent is one that is None: a factory's default.

  Returns:
    By dotted key, both values in words; none where the curve is the same.
  """
  there, here = dotted.flatten(there), dotted.flatten(here)
  return {
    key: f'{key}={there.get(key)} there and {here.get(key)} here'
    for key in sorted(there.keys() | here.keys())
    # As text, where even a NaN is equal to itself.
    if json.dumps(there.get(key)) != json.dumps(here.get(key))
    and key not in _FREE
  }
