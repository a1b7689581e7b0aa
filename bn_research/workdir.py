"""The files of a run: names, contents, reading and writing.

The module imports only the standard library and NumPy, because sweeps and
reports must read workdirs without the time for an import of JAX.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from bn_research import disk, dotted, errors, older

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
STATUS = 'status.json'
PROBES = 'probes'
CHECKPOINTS = 'checkpoints'

FORMAT = 2
"""The format of `config.json`. Format 1 had no number, and a single start."""

INCOMPLETE = 'incomplete'
DONE = 'done'
DIVERGED = 'diverged'
FAILED = 'failed'


@dataclasses.dataclass(frozen=True)
class Status:
  """The status of a run.

  Attributes:
    status: `INCOMPLETE`, `DONE`, `DIVERGED` or `FAILED`.
    step: Number of completed training steps at the time of the status.
    reason: The reason for the status, in a single line; empty if the status
      needs no reason.
    metrics: The SHA-256 digest of `metrics.jsonl` for a run that is over;
      otherwise empty.
    probes: The SHA-256 digests of the files of the probes, by key, for a run
      that is over; otherwise empty.
  """

  status: str = INCOMPLETE
  step: int = 0
  reason: str = ''
  metrics: str = dataclasses.field(default='', compare=False)
  probes: Mapping[str, str] = dataclasses.field(
    default_factory=dict, compare=False, hash=False
  )

  @property
  def is_over(self) -> bool:
    """Whether the run completed all steps, or diverged."""
    return self.status in (DONE, DIVERGED)


def write_status(workdir: disk.PathLike, status: Status) -> None:
  """Writes `status.json`, with the digest of the metrics of a run that is over.

  Args:
    workdir: The workdir of the run.
    status: The status. The metrics must be on the disk.
  """
  if status.is_over:
    probes = {
      path.stem: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted(pathlib.Path(workdir, PROBES).glob('*.npz'))
    }
    status = dataclasses.replace(
      status, metrics=_digest_of_metrics(workdir), probes=probes
    )
  value = disk.sealed(dataclasses.asdict(status))
  disk.write_json(pathlib.Path(workdir, STATUS), value)


def read_status(workdir: disk.PathLike) -> Status:
  """Reads `status.json`.

  Args:
    workdir: The workdir of the run.

  Returns:
    The status. A run without a readable `status.json` is incomplete: the
    training command continues from the newest checkpoint, and writes a new
    status.
  """
  try:
    fields = json.loads(pathlib.Path(workdir, STATUS).read_text())
    disk.check_seal(fields)
    return Status(
      str(fields['status']),
      int(fields['step']),
      str(fields.get('reason', '')),
      str(fields.get('metrics', '')),
      dict(fields.get('probes', {})),
    )
  # A damaged file may have any content, also a number without an end.
  except (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    ArithmeticError,
    RecursionError,
  ):
    return Status()


def standing(workdir: disk.PathLike, config: Mapping[str, Any]) -> Status:
  """Reads the status of a run with respect to a config.

  Args:
    workdir: The workdir of the run.
    config: The config, with `num_steps` and `probes`.

  Returns:
    The status. The result for a run that is over is incomplete if a done run
    has fewer steps than the config, or if a file of the run is damaged.
  """
  status = towards(read_status(workdir), config['num_steps'])
  if status.is_over and (name := _damaged_file(workdir, status, config)):
    return Status(INCOMPLETE, status.step, f'{name} is damaged')
  return status


def towards(status: Status, num_steps: int) -> Status:
  """Returns a status; a run that was done before `num_steps` is incomplete."""
  if status.status == DONE and status.step < num_steps:
    return Status(INCOMPLETE, status.step)
  return status


def _damaged_file(
  workdir: disk.PathLike, status: Status, config: Mapping[str, Any]
) -> str | None:
  """Returns the path of a damaged or lost file of a finished run, or None."""
  if not has_whole_metrics(workdir, status):
    return METRICS
  probes = config.get('probes') or {}
  for key in probes if status.status == DONE else ():
    if probes[key] is not None and not _has_whole_probe(workdir, key, status):
      return f'{PROBES}/{key}.npz'
  return None


def _has_whole_probe(workdir: disk.PathLike, name: str, status: Status) -> bool:
  try:
    read_probe(workdir, name, status)
  except errors.UserError:
    return False
  return True


def has_whole_metrics(workdir: disk.PathLike, status: Status) -> bool:
  """Returns whether the metrics have the digest in the status.

  The result for a status without a digest is True, because older versions wrote
  no digest.

  Args:
    workdir: The workdir of the run.
    status: The status of the run.
  """
  return status.metrics in ('', _digest_of_metrics(workdir))


def _digest_of_metrics(workdir: disk.PathLike) -> str:
  try:
    content = pathlib.Path(workdir, METRICS).read_bytes()
  except OSError:
    content = b''
  return hashlib.sha256(content).hexdigest()


class Damaged(errors.UserError):
  """A file of a run cannot be read, or has a different digest."""


def has_config(workdir: disk.PathLike) -> bool:
  """Returns whether a run has started in this directory.

  Raises:
    UserError: If no directory can have this path.
  """
  # For an impossible path, for example with a long name, `exists` raises an
  # OSError.
  with disk.writing(workdir):
    return pathlib.Path(workdir, CONFIG).exists()


def read_record(workdir: disk.PathLike) -> dict[str, Any]:
  """Reads `config.json`: the config, the dataset and the starts of a run.

  Returns:
    A dict with `format`, `config`, `dataset`, `lengths` and `starts`: for each
    start of the run `time`, `versions`, `revision`, `devices` and `command`. A
    file from an older version may have fewer keys.

  Raises:
    UserError: If `config.json` is missing, damaged, or of a later format.
  """
  path = pathlib.Path(workdir, CONFIG)
  try:
    record = json.loads(path.read_text())
    # Valid JSON may have a different form: the config must be a dict.
    record['config'].items()
    disk.check_seal(record)
    record.pop('sha256', None)
  except OSError as error:
    raise errors.UserError(
      f'{path}: {error.strerror}; is this the workdir of a run?'
    ) from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise Damaged(
      f'{path} is damaged; the command that trains restores it'
    ) from error
  if record.get('format', 1) not in range(1, FORMAT + 1):
    raise errors.UserError(
      f'{path} has the format {record["format"]}, and this version knows'
      f' formats up to {FORMAT}; update, or choose another --workdir'
    )
  record['config'] = older.completed(dotted.with_names(record['config']))
  return record


def read_config(workdir: disk.PathLike) -> dict[str, Any]:
  """Reads the resolved config of a run as nested dicts.

  Raises:
    UserError: If `config.json` is missing, damaged, or of a later format.
  """
  return read_record(workdir)['config']


def read_metrics(workdir: disk.PathLike) -> list[dict[str, Any]]:
  """Reads the rows of `metrics.jsonl`.

  Returns:
    A dict for each row, in the order of steps. The list is empty without a
    file. Reading ends at the first damaged line, because a killed run may leave
    an incomplete last line.
  """
  try:
    lines = pathlib.Path(workdir, METRICS).read_bytes().splitlines()
  except FileNotFoundError:
    return []
  except OSError as error:
    raise Damaged(
      f'{workdir}/{METRICS} cannot be read: {error.strerror}; mend that and run'
      ' the same command again'
    ) from error
  rows = []
  for line in lines:
    try:
      row = json.loads(line)
      rows.append({**row, 'step': int(row['step'])})
    except (ValueError, KeyError, TypeError):
      break
  return rows


def truncate_metrics(workdir: disk.PathLike, step: int) -> list[dict[str, Any]]:
  """Removes the rows after `step`, and an incomplete last line.

  Returns:
    The remaining rows.
  """
  rows = [row for row in read_metrics(workdir) if row['step'] <= step]
  text = ''.join(disk.to_json(row) + '\n' for row in rows)
  path = pathlib.Path(workdir, METRICS)
  disk.write_atomically(path, lambda file: file.write(text.encode()))
  return rows


def write_probe(
  workdir: disk.PathLike, name: str, arrays: Mapping[str, np.ndarray]
) -> None:
  """Writes `probes/NAME.npz`.

  Args:
    workdir: The workdir of the run.
    name: The name of the probe.
    arrays: `step` (k,), and an array for each measured quantity.
  """
  # `np.savez` jumps back and forth in a file. The buffer in memory is then
  # written to the disk in order.
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)  # type: ignore[arg-type]
  path = pathlib.Path(workdir, PROBES, f'{name}.npz')
  disk.write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def read_probe(
  workdir: disk.PathLike, name: str, status: Status | None = None
) -> dict[str, np.ndarray]:
  """Reads `probes/NAME.npz`.

  Args:
    workdir: The workdir of the run.
    name: The name of the probe.
    status: The status of the run, to compare the digest of the file; None to
      compare no digest.

  Returns:
    The arrays by name. `step` (k,) contains the steps of the measurements.

  Raises:
    UserError: If the file does not exist, or is damaged.
  """
  path = pathlib.Path(workdir, PROBES, f'{name}.npz')
  try:
    # With a path, `np.load` does not close a damaged file. This `open` closes
    # the file in every case.
    with open(path, 'rb') as file, np.load(file) as arrays:
      found = dict(arrays)
    expected = status.probes.get(name) if status is not None else None
    if expected and hashlib.sha256(path.read_bytes()).hexdigest() != expected:
      raise ValueError('the digest differs')
    return found
  except FileNotFoundError as error:
    raise errors.UserError(
      f'{path} does not exist; train with the probe {name!r} first'
    ) from error
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise errors.UserError(
      f'{path} is damaged; the command that trained the run restores it'
    ) from error
