"""Writes files completely or not at all, and reports disk errors to the user.

The module imports the standard library only.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from bn_research import errors

PathLike = str | os.PathLike[str]

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


def check_local(path: PathLike) -> None:
  """Checks that a path is not the address of a bucket, such as `gs://b/run`.

  Raises:
    UserError: If the path begins with the name of a protocol. The files of a
      run are appended to and renamed, and a bucket offers neither.
  """
  if re.match(r'[A-Za-z][\w+.-]*:/', os.fspath(path)):
    raise errors.UserError(
      f'{os.fspath(path)} is not a folder of a disk; choose another --workdir'
    )


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
  path = pathlib.Path(path)
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
  write_bytes(path, (to_json(value, indent=2) + '\n').encode())


def to_json(value: Any, **options: Any) -> str:
  """Returns a value as JSON that every parser reads.

  Python writes `Infinity` and `NaN`, which JSON does not have. Here an infinity
  is `1e999`, a number that parsers read as an infinity, and NaN is `null`.

  Args:
    value: A value that `json.dumps` accepts.
    **options: Options of `json.dumps`.
  """
  text = json.dumps(value, **options)
  return _TOKENS.sub(lambda found: _AS_JSON.get(found[0], found[0]), text)


# Strings are tokens too: a string may contain the word NaN.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')
_AS_JSON = {'Infinity': '1e999', '-Infinity': '-1e999', 'NaN': 'null'}


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a JSON object with a digest of the content, under `sha256`."""
  return {**value, 'sha256': _digest(value)}


def check_seal(value: Mapping[str, Any]) -> None:
  """Checks a JSON object that was read against its digest.

  An object without a digest is accepted: a person may have written the file.

  Raises:
    ValueError: If the digest differs.
  """
  content = dict(value)
  expected = content.pop('sha256', None)
  if expected is not None and expected != _digest(content):
    raise ValueError('the digest of the file differs')


def _digest(value: Any) -> str:
  text = to_json(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
