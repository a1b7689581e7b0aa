"""Reads `metrics.jsonl`: a row of metrics in each line."""

import hashlib
import json
from typing import Any

from bn_research import disk, json_text
from bn_research.workdir import files


def read_metrics(workdir: disk.PathLike) -> list[dict[str, Any]]:
  """Reads the rows of `metrics.jsonl`.

  Returns:
    A dict for each row, in the order of steps. The list is empty without a
    file. Reading ends at the first damaged line, because a killed run may leave
    an incomplete last line.
  """
  try:
    lines = disk.read_bytes(disk.path(workdir, files.METRICS)).splitlines()
  except FileNotFoundError:
    return []
  except OSError as error:
    raise files.Damaged(
      f'{workdir}/{files.METRICS} cannot be read: {error.strerror}; mend that'
      ' and run the same command again'
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
  text = ''.join(json_text.of(row) + '\n' for row in rows)
  disk.write_bytes(disk.path(workdir, files.METRICS), text.encode())
  return rows


def digest(workdir: disk.PathLike) -> str:
  """Returns the SHA-256 digest of `metrics.jsonl`, in hexadecimal digits."""
  try:
    content = disk.read_bytes(disk.path(workdir, files.METRICS))
  except OSError:
    content = b''
  return hashlib.sha256(content).hexdigest()
