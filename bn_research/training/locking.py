"""One process a workdir."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from bn_research import disk, errors


@contextlib.contextmanager
def exclusive(directory: disk.PathLike) -> Iterator[None]:
  """Holds a workdir for this process; the system frees it if we are killed.

  Args:
    directory: The workdir, made if it is not there.

  Raises:
    UserError: If another process holds it, or it cannot be made.
  """
  with disk.writing(directory):
    os.makedirs(directory, exist_ok=True)
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
    pass  # Some network file systems cannot lock directories.
  try:
    yield
  finally:
    os.close(descriptor)
