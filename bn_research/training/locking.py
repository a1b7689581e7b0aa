"""Locks a workdir, to keep a second process from training in the workdir."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from bn_research import disk, errors


@contextlib.contextmanager
def exclusive(directory: disk.PathLike) -> Iterator[None]:
  """Holds the lock of a workdir until the `with` block ends.

  If the process is killed, the operating system releases the lock.

  Args:
    directory: The workdir. A missing directory is created.

  Raises:
    UserError: If another process holds the lock, or if the directory cannot be
      created.
  """
  with disk.writing(directory):
    os.makedirs(directory, exist_ok=True)
  # A lock on the directory leaves no lock file behind.
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    os.close(descriptor)
    raise errors.UserError(
      f'another process is training in {directory}; wait for it, or choose'
      ' another --workdir'
    ) from error
  except OSError:
    # Some network file systems cannot lock directories. Training then continues
    # without a lock.
    pass
  try:
    yield
  finally:
    os.close(descriptor)
