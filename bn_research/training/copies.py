"""Copies of the files of a run, which a checkpoint keeps.

A checkpoint at step t holds the rows of metrics and the measurements of probes
up to t. A run that goes on from the checkpoint begins with these files. Damage
to the files in the workdir therefore loses nothing.
"""

import hashlib
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from bn_research import disk, workdir

Files = dict[str, bytes]


def read(directory: disk.PathLike) -> Files:
  """Reads the files of a run that grow while the run trains.

  Args:
    directory: The workdir.

  Returns:
    The content of `metrics.jsonl` and of `probes/*.npz`, by the path in the
    workdir.
  """
  names = [workdir.METRICS, *workdir.probe_files(directory)]
  paths = {name: disk.path(directory, name) for name in names}
  return {
    name: disk.read_bytes(path)
    for name, path in paths.items()
    if disk.exists(path)
  }


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
  """Returns the SHA-256 digest of each file, in hexadecimal digits."""
  return {
    name: hashlib.sha256(content).hexdigest() for name, content in files.items()
  }


def as_arrays(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
  """Returns the files as arrays of bytes, with numbers for names.

  Orbax would take a slash in a name for a level of the pytree.
  """
  return {
    f'file_{k}': np.frombuffer(content, np.uint8)
    for k, content in enumerate(files.values())
  }


def from_arrays(
  arrays: Mapping[str, np.ndarray], expected: Mapping[str, str]
) -> Files:
  """Returns the files of `as_arrays`.

  Args:
    arrays: The result of `as_arrays`.
    expected: The result of `digests`, in the order of the files.

  Raises:
    ValueError: If a digest differs.
  """
  files = {
    name: np.asarray(arrays[f'file_{k}']).tobytes()
    for k, name in enumerate(expected)
  }
  if digests(files) != dict(expected):
    raise ValueError('the digest of a file differs')
  return files


def put_back(
  directory: disk.PathLike,
  files: Mapping[str, bytes],
  say: Callable[[str], None],
) -> None:
  """Writes the files of a checkpoint into the workdir.

  Rows and measurements after the checkpoint are dropped: the run measures these
  again.

  Args:
    directory: The workdir.
    files: The files.
    say: A function that prints a line. Each file that was damaged gets a line.
  """
  for name, content in files.items():
    path = disk.path(directory, name)
    there = disk.read_bytes(path) if disk.exists(path) else b''
    if there == content:
      continue
    if not _is_later(path, there, content):
      say(f'{path} was damaged; it is restored from the checkpoint')
    disk.write_bytes(path, content)


def _is_later(path: pathlib.PurePath, there: bytes, content: bytes) -> bool:
  """Returns whether a file holds more than a copy, and agrees with the copy."""
  if path.name == workdir.METRICS:
    return there.startswith(content)
  try:
    # Files of NumPy have checksums, hence a readable file is not damaged.
    workdir.read_probe(path.parent.parent, path.stem)
  except Exception:
    return False
  return True
