"""The files of runs, in folders of a disk or of a bucket.

All code that reads or writes a workdir calls this module. A file is written
completely or not at all, and an error of the disk is one line for the user. The
module imports the standard library only; a path in a bucket (`gs://bucket/runs`
or `s3://bucket/runs`) makes it import `buckets`.
"""

import contextlib
import errno
import fnmatch
import io
import os
import pathlib
import re
import types
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from bn_research import errors, json_text

PathLike = str | os.PathLike[str]

_PROTOCOLS = ('gs://', 's3://')

# Only errors that the user can fix. Any different error keeps the traceback.
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
  """Turns a disk error, for example a full disk, into an error message.

  Args:
    path: The file or directory that the body writes, for the message.

  Raises:
    UserError: If the body raises an `OSError` that the user can fix.
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


def is_bucket(path: PathLike) -> bool:
  """Returns whether a path is in a bucket: whether it begins with `gs://`."""
  return os.fspath(path).startswith(_PROTOCOLS)


def path(first: PathLike, *more: str) -> pathlib.PurePath:
  """Returns a path, which the functions of this module accept.

  Args:
    first: The beginning of the path, as the user typed it.
    *more: Further names.

  Returns:
    A `pathlib.Path` for a disk, and an `epath.Path` for a bucket.
  """
  if not is_bucket(first):
    return pathlib.Path(first, *more)
  from etils import epath

  return epath.Path(first, *more)


def check(path: PathLike) -> None:
  """Checks that a path is of a disk, or of a bucket that answers.

  Raises:
    UserError: If the path has another protocol, or if the bucket cannot be
      listed.
  """
  if is_bucket(path):
    _objects().check(path)
  elif re.match(r'[A-Za-z][\w+.-]*:/', os.fspath(path)):
    raise errors.UserError(
      f'{os.fspath(path)} is neither a folder of a disk nor of a bucket'
      f' ({" or ".join(_PROTOCOLS)}); choose another --workdir'
    )


def check_writable(path: PathLike) -> None:
  """Checks in addition that a bucket can be written, with an empty object.

  A folder of a disk is not written here: the first file tells its errors.

  Raises:
    UserError: In the cases of `check`, or if the bucket cannot be written.
  """
  check(path)
  if is_bucket(path):
    _objects().check_writable(path)


def _objects() -> types.ModuleType:
  """Returns the module of buckets, whose import takes time."""
  from bn_research.buckets import objects

  return objects


def user_cache() -> pathlib.Path:
  """Returns the folder of the user for files that may be deleted."""
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(home, 'bn_research')


def read_bytes(path: PathLike) -> bytes:
  """Returns the content of a file.

  Raises:
    OSError: If the file does not exist, or if the disk cannot read the file.
    UserError: If the bucket does not give the object.
  """
  if is_bucket(path):
    return _objects().read(path)
  return pathlib.Path(path).read_bytes()


def exists(path: PathLike) -> bool:
  """Returns whether a file exists."""
  if is_bucket(path):
    return _objects().exists(path)
  return pathlib.Path(path).exists()


def is_folder(path: PathLike) -> bool:
  """Returns whether a folder exists. In a bucket, every folder exists."""
  # `os.path.isdir` is False also for an impossible path, such as a long name.
  return is_bucket(path) or os.path.isdir(path)


def make_folder(path: PathLike) -> None:
  """Creates a folder, if it is missing; a bucket has no folders to create."""
  if not is_bucket(path):
    with writing(path):
      os.makedirs(path, exist_ok=True)


def names(directory: PathLike, pattern: str) -> list[str]:
  """Returns the sorted names of the files in a folder that match a pattern.

  Args:
    directory: The folder. A missing folder has no files.
    pattern: A pattern of `fnmatch`, such as `*.npz`.
  """
  if is_bucket(directory):
    found = _objects().names(directory)
  else:
    folder = pathlib.Path(directory)
    found = (
      [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    )
  return sorted(fnmatch.filter(found, pattern))


def modified(path: PathLike) -> float:
  """Returns when a file was written last, in seconds since 1970.

  Raises:
    OSError: If the file does not exist.
  """
  if is_bucket(path):
    return _objects().modified(path)
  return pathlib.Path(path).stat().st_mtime


def remove(path: PathLike) -> None:
  """Removes a file. On a disk, a missing file raises an OSError."""
  if is_bucket(path):
    _objects().remove(path)
  else:
    pathlib.Path(path).unlink()


def write_atomically(
  path: PathLike, write: Callable[[BinaryIO], object]
) -> None:
  """Writes a file atomically: a reader sees the old file or the new file.

  Args:
    path: The path of the file. A missing directory is created.
    write: A function of a binary file object, which writes the content.

  Raises:
    UserError: If the disk refuses the file and the user can fix the error, for
      example a full disk. The old file is then unchanged.
  """
  if is_bucket(path):
    buffer = io.BytesIO()
    write(buffer)
    _objects().write(path, buffer.getvalue())
  else:
    _write_on_disk(pathlib.Path(path), write)


def _write_on_disk(
  path: pathlib.Path, write: Callable[[BinaryIO], object]
) -> None:
  # `os.replace` is atomic only within a file system, hence the temporary file
  # is in the same directory. The process id keeps two processes from writing
  # the same temporary file.
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(temporary, 'wb') as file:
        write(file)
        # The content must be on the disk before the rename. After a power
        # failure, the new name could otherwise belong to an incomplete file.
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    # Ctrl-C raises KeyboardInterrupt, which is not an `Exception`.
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


def write_bytes(path: PathLike, content: bytes) -> None:
  """Writes a file atomically; see `write_atomically`."""
  write_atomically(path, lambda file: file.write(content))


def write_json(path: PathLike, value: Any) -> None:
  """Writes a value as indented JSON, atomically.

  Args:
    path: The path of the file.
    value: A value that `json.dumps` accepts.

  Raises:
    UserError: In the cases of `write_atomically`.
  """
  write_bytes(path, (json_text.of(value, indent=2) + '\n').encode())
