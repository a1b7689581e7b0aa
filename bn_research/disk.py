"""Files that are written whole or not at all, and a disk's errors in one line.

Imports the standard library only.
"""

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from bn_research import errors

PathLike = str | os.PathLike[str]

_FIXES = {
  errno.ENOSPC: 'free some space',
  errno.EDQUOT: 'free some of your quota',
  errno.EFBIG: 'raise the limit on file sizes',
  errno.EROFS: 'choose a writable --workdir',
  errno.EACCES: 'choose a writable --workdir',
  errno.EPERM: 'choose a writable --workdir',
  errno.ENOTDIR: 'choose another --workdir',
  errno.EEXIST: 'choose another --workdir',
  errno.ELOOP: 'choose another --workdir',
  errno.ENOENT: 'choose another --workdir',
  errno.ENAMETOOLONG: 'choose a shorter --workdir',
}


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[None]:
  """Turns an error of the disk (full, read-only) into one line for the user.

  Args:
    path: What is being written; named in the message.

  Raises:
    UserError: If the body meets an `OSError` that the user can cure.
  """
  try:
    yield
  except OSError as error:
    if error.errno not in _FIXES:
      raise
    raise errors.UserError(
      f'cannot write {os.fspath(path)}: {os.strerror(error.errno)};'
      f' {_FIXES[error.errno]} and run the same command again'
    ) from error


def write_atomically(
  path: PathLike, write: Callable[[BinaryIO], object]
) -> None:
  """Writes a file so that a reader sees the old or the new one, never half.

  Args:
    path: The file; its directory is made if it is not there.
    write: Called with a binary file object that ends up as `path`.

  Raises:
    UserError: If the disk is full, read-only or not ours; `path` then still
      holds what it held.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(temporary, 'wb') as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


def write_json(path: PathLike, value: Any) -> None:
  """Writes `value` as indented JSON, atomically."""
  text = json.dumps(value, indent=2) + '\n'
  write_atomically(path, lambda file: file.write(text.encode()))
