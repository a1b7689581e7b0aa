"""Reads and writes the objects of buckets. Each write is of a whole object."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from bn_research import disk, errors
from bn_research.buckets import connecting, leases

_PROBE = '.writable'


def check(path: disk.PathLike) -> None:
  """Checks that a bucket can be listed.

  Raises:
    UserError: If the bucket does not exist, refuses, or does not answer.
  """
  bucket = _bucket(path)
  try:
    _listing(path)
  except FileNotFoundError:
    if bucket.startswith('s3:'):
      return  # S3 has another answer for a bucket that does not exist.
    try:
      _listing(bucket)
    except FileNotFoundError as error:
      raise connecting.no_bucket(path) from error


def check_writable(path: disk.PathLike) -> None:
  """Checks that objects below a path can be written and removed.

  Raises:
    UserError: If the bucket refuses.
  """
  probe = disk.path(path, _PROBE)
  write(probe, b'')
  remove(probe)


def read(path: disk.PathLike) -> bytes:
  """Returns the content of an object.

  Raises:
    FileNotFoundError: If the object does not exist.
    UserError: If the bucket refuses.
  """
  with connecting.told(path):
    return connecting.filesystem(path).cat_file(_text(path))


def write(path: disk.PathLike, content: bytes) -> None:
  """Writes a whole object, which appears at the end of the write.

  Raises:
    Busy: If this process has lost the lease of the folder.
    UserError: If the bucket refuses.
  """
  with _writing(path):
    connecting.filesystem(path).pipe_file(_text(path), content)


def exists(path: disk.PathLike) -> bool:
  """Returns whether an object exists."""
  with connecting.told(path):
    return connecting.filesystem(path).isfile(_text(path))


def names(directory: disk.PathLike) -> list[str]:
  """Returns the names of the objects directly below a path."""
  try:
    found = _listing(directory)
  except FileNotFoundError:
    return []
  return [os.path.basename(name) for name in found]


def folders_with(directory: disk.PathLike, name: str) -> list[str]:
  """Returns the outermost paths below which an object has a name, sorted."""
  protocol = _text(directory).partition('://')[0]
  try:
    with connecting.told(directory):
      keys = connecting.filesystem(directory).find(_text(directory))
  except FileNotFoundError:
    return []
  found: list[str] = []
  folders = (os.path.split(key) for key in keys)
  for folder in sorted(above for above, last in folders if last == name):
    if not any(folder.startswith(f'{other}/') for other in found):
      found.append(folder)
  return [f'{protocol}://{folder}' for folder in found]


def modified(path: disk.PathLike) -> float:
  """Returns when an object was written, in seconds since 1970."""
  with connecting.told(path):
    return connecting.filesystem(path).modified(_text(path)).timestamp()


def remove(path: disk.PathLike) -> None:
  """Removes an object, if there is one.

  Raises:
    Busy: If this process has lost the lease of the folder.
    UserError: If the bucket refuses.
  """
  with contextlib.suppress(FileNotFoundError), _changing(path):
    connecting.filesystem(path).rm_file(_text(path))


def upload(file: pathlib.Path, path: disk.PathLike) -> None:
  """Writes a file of the disk as a whole object; see `write`."""
  with _writing(path):
    connecting.filesystem(path).put_file(os.fspath(file), _text(path))


def download(path: disk.PathLike, file: pathlib.Path) -> None:
  """Writes the content of an object into a file of the disk; see `read`."""
  with connecting.told(path):
    connecting.filesystem(path).get_file(_text(path), os.fspath(file))


def move(path: disk.PathLike, to: disk.PathLike) -> None:
  """Renames an object: a copy, and a removal."""
  with _changing(path):
    connecting.filesystem(path).cp_file(_text(path), _text(to))
  remove(path)


@contextlib.contextmanager
def _changing(path: disk.PathLike) -> Iterator[None]:
  """Checks the lease before a change, and tells what the bucket refuses."""
  leases.check(path)
  with connecting.told(path):
    yield


@contextlib.contextmanager
def _writing(path: disk.PathLike) -> Iterator[None]:
  """Is `_changing`, where only a missing bucket makes a path missing."""
  try:
    with _changing(path):
      yield
  except FileNotFoundError as error:
    raise connecting.no_bucket(path) from error


def _text(path: disk.PathLike) -> str:
  """Returns a path without a slash at the end, or two slashes in a row."""
  return os.fspath(disk.path(path))


def _listing(directory: disk.PathLike) -> list[str]:
  with connecting.told(directory):
    return connecting.filesystem(directory).ls(_text(directory), detail=False)


def _bucket(path: disk.PathLike) -> str:
  protocol, _, rest = _text(path).partition('://')
  bucket = rest.partition('/')[0]
  if not bucket:
    raise errors.UserError(
      f'{protocol}:// has no name of a bucket; give one: {protocol}://NAME/runs'
    )
  return f'{protocol}://{bucket}'
