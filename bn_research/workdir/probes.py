"""Reads and writes `probes/NAME.npz`: the measurements of a probe."""

import hashlib
import io
import zipfile
from collections.abc import Mapping

import numpy as np

from bn_research import disk
from bn_research.workdir import files, states


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
  path = disk.path(workdir, files.PROBES, f'{name}.npz')
  disk.write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def probe_files(workdir: disk.PathLike) -> list[str]:
  """Returns the paths of the files of probes, relative to the workdir."""
  found = disk.names(disk.path(workdir, files.PROBES), '*.npz')
  return [f'{files.PROBES}/{name}' for name in found]


def read_probe(
  workdir: disk.PathLike, name: str, status: states.Status | None = None
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
    Damaged: If the file does not exist, or is damaged.
  """
  path = disk.path(workdir, files.PROBES, f'{name}.npz')
  try:
    content = disk.read_bytes(path)
    with np.load(io.BytesIO(content)) as arrays:
      found = dict(arrays)
    expected = status.probes.get(name) if status is not None else None
    if expected and hashlib.sha256(content).hexdigest() != expected:
      raise ValueError('the digest differs')
    return found
  except FileNotFoundError as error:
    raise files.Damaged(
      f'{path} does not exist; train with the probe {name!r} first'
    ) from error
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise files.Damaged(
      f'{path} is damaged; the command that trained the run restores it'
    ) from error
