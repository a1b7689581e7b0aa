"""The printed lines of each thread in a file of its own."""

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

from bn_research import disk

_here = threading.local()


class _ByThread(io.TextIOBase):
  """A standard output that each thread can direct to a file."""

  def __init__(self, usual: TextIO):
    self._usual = usual

  def write(self, text: str) -> int:
    return self._target.write(text)

  def flush(self) -> None:
    self._target.flush()

  def isatty(self) -> bool:
    return self._target.isatty()

  def fileno(self) -> int:
    return self._target.fileno()

  @property
  def _target(self) -> TextIO:
    return getattr(_here, 'file', self._usual)


@contextlib.contextmanager
def by_thread() -> Iterator[None]:
  """Lets `to` direct the standard output, until the `with` block ends."""
  usual = sys.stdout
  sys.stdout = _ByThread(usual)
  try:
    yield
  finally:
    sys.stdout = usual


@contextlib.contextmanager
def to(path: disk.PathLike) -> Iterator[None]:
  """Appends the lines of this thread to a file, until the `with` block ends."""
  with open(path, 'a') as file:
    _here.file = file
    try:
      yield
    finally:
      del _here.file
