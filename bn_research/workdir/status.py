"""Reads and writes `status.json`: how far a run is, and what it sealed."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from bn_research import disk, json_text
from bn_research.workdir import files, probes, rows, states


def write_status(workdir: disk.PathLike, status: states.Status) -> None:
  """Writes `status.json`, with the digest of the metrics of a run that is over.

  Args:
    workdir: The workdir of the run.
    status: The status. The metrics must be on the disk.
  """
  if status.is_over:
    digests = {
      disk.path(name).stem: _digest(disk.path(workdir, name))
      for name in probes.probe_files(workdir)
    }
    status = dataclasses.replace(
      status, metrics=rows.digest(workdir), probes=digests
    )
  value = json_text.sealed(dataclasses.asdict(status))
  disk.write_json(disk.path(workdir, files.STATUS), value)


def _digest(path: disk.PathLike) -> str:
  return hashlib.sha256(disk.read_bytes(path)).hexdigest()


def read_status(workdir: disk.PathLike) -> states.Status:
  """Reads `status.json`.

  Args:
    workdir: The workdir of the run.

  Returns:
    The status. A run without a readable `status.json` is incomplete: the
    training command continues from the newest checkpoint, and writes a new
    status.
  """
  try:
    fields = json.loads(disk.read_bytes(disk.path(workdir, files.STATUS)))
    json_text.check_seal(fields)
    return states.Status(
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
    return states.Status()


def standing(
  workdir: disk.PathLike, config: Mapping[str, Any]
) -> states.Status:
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
    return states.Status(states.INCOMPLETE, status.step, f'{name} is damaged')
  return status


def towards(status: states.Status, num_steps: int) -> states.Status:
  """Returns a status; a run that was done before `num_steps` is incomplete."""
  if status.status == states.DONE and status.step < num_steps:
    return states.Status(states.INCOMPLETE, status.step)
  return status


def _damaged_file(
  workdir: disk.PathLike, status: states.Status, config: Mapping[str, Any]
) -> str | None:
  """Returns the path of a damaged or lost file of a finished run, or None."""
  if not has_whole_metrics(workdir, status):
    return files.METRICS
  sections = config.get('probes') or {}
  for key in sections if status.status == states.DONE else ():
    if sections[key] is not None and not _has_whole_probe(workdir, key, status):
      return f'{files.PROBES}/{key}.npz'
  return None


def _has_whole_probe(
  workdir: disk.PathLike, name: str, status: states.Status
) -> bool:
  try:
    probes.read_probe(workdir, name, status)
  except files.Damaged:
    return False
  return True


def has_whole_metrics(workdir: disk.PathLike, status: states.Status) -> bool:
  """Returns whether the metrics have the digest in the status.

  The result for a status without a digest is True, because older versions wrote
  no digest.

  Args:
    workdir: The workdir of the run.
    status: The status of the run.
  """
  return status.metrics in ('', rows.digest(workdir))
