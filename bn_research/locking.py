"""Locks a workdir, to keep a second process from training in the workdir.

A folder of a disk has a lock of the operating system. A folder of a bucket has
a lease, see `buckets.leases`.
"""

import contextlib
import fcntl
import os
import time
import types
from collections.abc import Iterator

from bn_research import disk, errors

_ATTEMPTS = 5
_SECONDS = 0.02  # between two attempts


class Busy(errors.UserError):
  """Another process trains in a workdir. The run is fine, and goes on there."""

  exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again later


def is_held(directory: disk.PathLike) -> bool:
  """Returns whether another process trains in a workdir.

  Args:
    directory: The workdir, which need not exist.
  """
  if disk.is_bucket(directory):
    return _leases().is_held(directory)
  try:
    descriptor = os.open(directory, os.O_RDONLY)
  except OSError:
    return False
  try:
    # The test takes the lock for a moment. A run that starts in this moment
    # reports `Busy`, and a sweep then tries again.
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    return False
  finally:
    os.close(descriptor)
  return False


@contextlib.contextmanager
def exclusive(directory: disk.PathLike) -> Iterator[None]:
  """Holds the lock of a workdir until the `with` block ends.

  If the process is killed, the operating system releases the lock, and a lease
  ends after a minute.

  Args:
    directory: The workdir. A missing directory is created.

  Raises:
    UserError: If another process holds the lock, or if the directory cannot be
      created.
  """
  if disk.is_bucket(directory):
    with _leases().exclusive(directory):
      yield
    return
  disk.make_folder(directory)
  # A lock on the directory leaves no lock file behind.
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    if not _lock(descriptor):
      raise Busy(
        f'another process is training in {directory}; wait for it, or choose'
        ' another --workdir'
      )
    yield
  finally:
    os.close(descriptor)


def check(path: disk.PathLike) -> None:
  """Checks that this process still holds the lease of a folder in a bucket.

  Nobody can take the lock of a folder on a disk.

  Args:
    path: A path in the folder.

  Raises:
    Busy: If the lease is lost.
  """
  if disk.is_bucket(path):
    _leases().check(path)


def _leases() -> types.ModuleType:
  """Returns the module of leases, whose import takes time."""
  from bn_research.buckets import leases

  return leases


def _lock(descriptor: int) -> bool:
  """Locks an open directory, and returns whether this process has the lock."""
  for _ in range(_ATTEMPTS):
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return True
    except BlockingIOError:
      # A test of `is_held` in another process holds the lock for a moment.
      time.sleep(_SECONDS)
    except OSError:
      # Some network file systems cannot lock directories. Training then
      # continues without a lock.
      return True
  return False
