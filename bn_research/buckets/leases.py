"""Leases: which process may write to a folder of a bucket.

The object `lease.json` names its owner. A thread of the owner writes the object
again at intervals. A lease that was not written for a minute has ended, and
another process may take it. Each write is conditional on the version that the
process saw, so that one of two processes wins.

The age of a lease is measured by the clock of the server, and the owner
measures its own time from before a write. The clocks of the hosts are not
compared.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from bn_research import disk, errors, locking
from bn_research.buckets import conditional

NAME = 'lease.json'

RENEW_SECONDS = 15.0
EXPIRE_SECONDS = 60.0
_WHOLE_SECONDS = 2.0  # Times of a server are rounded, each to a second.

# For how long a lease of another process is believed to be held. A sweep asks
# many times in a second.
BELIEVED_SECONDS = 2.0

# When the belief in a lease ends, by path.
_believed: dict[str, float] = {}

# The leases of this process, by path.
_held: dict[str, 'Lease'] = {}


class Lease:
  """The lease of a folder, held by this process.

  Attributes:
    directory: The folder.
  """

  def __init__(self, directory: disk.PathLike):
    """Takes the lease.

    Args:
      directory: The folder.

    Raises:
      Busy: If another process has the lease.
      UserError: If the bucket refuses.
    """
    self.directory = os.fspath(disk.path(directory))
    self._path = disk.path(directory, NAME)
    self._owner = uuid.uuid4().hex
    self._count = 0
    self._until = 0.0
    self._is_lost = False
    self._end = threading.Event()
    found = conditional.read(self._path)
    if found is not None and _seconds_left(found) > 0:
      raise self._busy(found)
    if not self._write(None if found is None else found.tag, self._owner):
      raise self._busy(conditional.read(self._path))
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises a Busy error if the lease is lost, or may be lost."""
    if self._is_lost or _now() >= self._until:
      raise locking.Busy(
        f'the lease of {self.directory} is lost to another process, or the'
        ' bucket did not answer in time; the run stops here, and the same'
        ' command goes on later'
      )

  def release(self) -> None:
    """Gives the lease back, if this process still has it."""
    self._end.set()
    self._thread.join()
    if not self._is_lost and _now() < self._until:
      with contextlib.suppress(errors.UserError):  # The lease ends by itself.
        self._write(self._tag, '')

  def _renew(self) -> None:
    """Writes the lease again at intervals, until it is released or lost."""
    while not self._end.wait(RENEW_SECONDS):
      try:
        self._is_lost = not self._write(self._tag, self._owner)
      except errors.UserError:
        continue  # The lease ends by itself if no later write succeeds.
      if self._is_lost:
        return

  def _write(self, tag: str | None, owner: str) -> bool:
    """Writes the lease, and returns whether the owner is then as wanted."""
    start = _now()
    self._count += 1
    # The count makes each content new, and so each entity tag.
    value = {
      'owner': owner,
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'seconds': EXPIRE_SECONDS,
      'count': self._count,
    }
    conditional.write(self._path, json.dumps(value).encode(), tag)
    found = conditional.read(self._path)
    fields = {} if found is None else _fields(found)
    if found is None or fields.get('owner') != owner:
      return False
    self._tag = found.tag
    # An earlier write of this process, whose answer was lost, does not count.
    if fields == value:
      self._until = start + EXPIRE_SECONDS
    return True

  def _busy(self, found: conditional.Version | None) -> locking.Busy:
    fields = {} if found is None else _fields(found)
    left = 0.0 if found is None else max(0.0, _seconds_left(found))
    return locking.Busy(
      f'another process (host {fields.get("host")}, pid {fields.get("pid")}) is'
      f' training in {self.directory}; wait for it, or choose another'
      f' --workdir; if it was killed, its lease ends in {left:.0f} s'
    )


@contextlib.contextmanager
def exclusive(directory: disk.PathLike) -> Iterator[None]:
  """Holds the lease of a folder until the `with` block ends.

  Raises:
    Busy: If another process has the lease.
    UserError: If the bucket refuses.
  """
  lease = Lease(directory)
  _held[lease.directory] = lease
  try:
    yield
  finally:
    del _held[lease.directory]
    lease.release()


def is_held(directory: disk.PathLike) -> bool:
  """Returns whether a process has the lease of a folder.

  The answer for a lease that was just given back may be two seconds old.
  """
  key = os.fspath(directory)
  if _now() < _believed.get(key, 0.0):
    return True
  found = conditional.read(disk.path(directory, NAME))
  if found is None or _seconds_left(found) <= 0:
    return False
  _believed[key] = _now() + BELIEVED_SECONDS
  return True


def check(path: disk.PathLike) -> None:
  """Raises a Busy error if this process has lost the lease above a path."""
  text = os.fspath(path)
  for directory, lease in list(_held.items()):
    if text.startswith(f'{directory}/'):
      lease.check()


def _seconds_left(found: conditional.Version) -> float:
  """Returns for how long a lease lasts, in seconds; 0 if it was given back."""
  fields = _fields(found)
  if not fields.get('owner'):
    return 0.0
  return fields.get('seconds', EXPIRE_SECONDS) + _WHOLE_SECONDS - found.age


def _fields(found: conditional.Version) -> dict[str, Any]:
  """Returns the content of a lease; nothing for a damaged lease."""
  try:
    value = json.loads(found.content)
  except ValueError:
    return {}
  return value if isinstance(value, dict) else {}


def _now() -> float:
  """Returns the seconds of a clock that goes on while the host sleeps."""
  clock = getattr(time, 'CLOCK_BOOTTIME', time.CLOCK_MONOTONIC)
  return time.clock_gettime(clock)
