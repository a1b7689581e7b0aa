"""Writes the lines of `metrics.jsonl`: appended on a disk, whole in a bucket.

A bucket cannot append to an object. There the lines stay in memory, and the
whole object is written at intervals, so an object never ends within a line.
"""

import errno
import os
import pathlib
import time

from bn_research import disk, locking

SECONDS = 10.0  # between two writes of an object


def open_file(path: pathlib.PurePath, content: bytes) -> 'Appended | Whole':
  """Opens the file of the rows.

  Args:
    path: The path of the file.
    content: The lines that the file has.
  """
  return Whole(path, content) if disk.is_bucket(path) else Appended(path)


class Appended:
  """A file of a disk, to which lines are appended."""

  def __init__(self, path: pathlib.PurePath):
    self._path = path
    self._open()

  def append(self, line: bytes) -> None:
    """Writes a line."""
    with disk.writing(self._path):
      size = os.fstat(self._file.fileno()).st_size
      if self._file.write(line) < len(line):
        # A full disk accepts a part of the line, and raises no error yet.
        self._file.truncate(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def tick(self) -> None:
    """Does nothing: each line is on the disk."""

  def flush(self, expected: bytes) -> None:
    """Waits until the file is on the disk, and restores a damaged file.

    Args:
      expected: All lines.
    """
    with disk.writing(self._path):
      os.fsync(self._file.fileno())
    try:
      is_whole = disk.read_bytes(self._path) == expected
    except OSError:
      is_whole = False
    if not is_whole:
      print(f'{self._path} was damaged while the run trained; it is restored')
      self._file.close()
      disk.write_bytes(self._path, expected)
      self._open()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _open(self) -> None:
    with disk.writing(self._path):
      self._file = open(self._path, 'ab', buffering=0)  # noqa: SIM115


class Whole:
  """An object of a bucket, which is written whole from time to time."""

  def __init__(self, path: pathlib.PurePath, content: bytes):
    self._path = path
    self._content = bytearray(content)
    self._is_changed = False
    self._last = time.monotonic()

  def append(self, line: bytes) -> None:
    """Keeps a line until the next write."""
    self._content += line
    self._is_changed = True
    self.tick()

  def tick(self) -> None:
    """Writes the object if the last write is old, and there are new lines.

    Raises:
      Busy: If the run has lost its lease to another process.
    """
    locking.check(self._path)
    if self._is_changed and time.monotonic() - self._last >= SECONDS:
      self._write()

  def flush(self, expected: bytes) -> None:
    """Writes the object.

    Args:
      expected: All lines.
    """
    self._content[:] = expected
    self._write()

  def close(self) -> None:
    """Does nothing: a run that ends in order has flushed its lines."""

  def _write(self) -> None:
    disk.write_bytes(self._path, bytes(self._content))
    self._is_changed = False
    self._last = time.monotonic()
