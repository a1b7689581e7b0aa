"""A pool of processes that trains the points of a sweep."""

import collections
import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from bn_research import disk, workdir
from bn_research.sweeps import child, points

LOG = 'log.txt'

# Ended by a signal, so nothing is known against the run. Not a status of a
# workdir: there, the run is incomplete.
LOST = 'lost'

_CHILD = (sys.executable, '-I', '-S', child.__file__)
_ATTEMPTS = 3
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 30.0  # for the last checkpoint of a run that is told to end


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run ended.

  Attributes:
    point: The point of the sweep.
    status: `DONE`, `DIVERGED` or `FAILED` of `workdir`, or `LOST`.
    seconds: How long its last attempt took.
    reason: Why, in one line; empty where there is nothing to say.
  """

  point: points.Point
  status: str
  seconds: float = 0.0
  reason: str = ''


@dataclasses.dataclass(frozen=True)
class _Attempt:
  point: points.Point
  number: int
  start: float
  process: subprocess.Popen


def run(
  todo: Sequence[points.Point], jobs: int, ended: Callable[[Outcome], None]
) -> None:
  """Trains points, each in a process of its own.

  What they print goes to `log.txt` in their workdirs. A run lost to a signal
  goes on from its last checkpoint, until its third loss. Where this call is
  interrupted, the processes are told to end and given time for a checkpoint; on
  Linux they are told so even where this process is killed.

  Args:
    todo: The points, in the order in which they start.
    jobs: How many run at a time.
    ended: Called with the outcome of each run when it is known.
  """
  waiting = collections.deque((point, 1) for point in todo)
  running: list[_Attempt] = []
  try:
    while waiting or running:
      while waiting and len(running) < jobs:
        running.append(_start(*waiting.popleft()))
      time.sleep(_POLL_SECONDS)
      for attempt in [a for a in running if a.process.poll() is not None]:
        running.remove(attempt)
        outcome = _outcome(attempt)
        if outcome.status == LOST and attempt.number < _ATTEMPTS:
          waiting.appendleft((attempt.point, attempt.number + 1))
        else:
          ended(outcome)
  finally:
    _stop([attempt.process for attempt in running])


def _start(point: points.Point, number: int) -> _Attempt:
  with disk.writing(point.workdir):
    point.workdir.mkdir(parents=True, exist_ok=True)
    with open(point.workdir / LOG, 'a') as log:
      print('+', shlex.join(point.command), file=log, flush=True)
      process = subprocess.Popen(
        [*_CHILD, str(os.getpid()), *point.command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # A group of its own: Ctrl-C reaches this process alone, which then ends
        # the others in order.
        process_group=0,
      )
  return _Attempt(point, number, time.monotonic(), process)


def _outcome(attempt: _Attempt) -> Outcome:
  seconds = time.monotonic() - attempt.start
  status = attempt.point.read_status()
  code = attempt.process.returncode
  if status.status != workdir.INCOMPLETE:
    return Outcome(attempt.point, status.status, seconds, status.reason)
  if code > 0:
    reason = _last_line(attempt.point.workdir / LOG).removeprefix('error: ')
    return Outcome(attempt.point, workdir.FAILED, seconds, reason)
  # A run that catches SIGTERM saves, and exits with 0.
  name = signal.Signals(-code or signal.SIGTERM).name
  reason = f'lost to {name} {attempt.number} times; start again to go on'
  return Outcome(attempt.point, LOST, seconds, reason)


def _last_line(path: pathlib.Path) -> str:
  lines = path.read_text(errors='replace').split('\n')
  return next((line.strip() for line in reversed(lines) if line.strip()), '')


def _stop(processes: Sequence[subprocess.Popen]) -> None:
  """Ends processes: asks, waits, and kills what is left."""
  for process in processes:
    process.terminate()
  try:
    for process in processes:
      process.wait(_GRACE_SECONDS)
  except (subprocess.TimeoutExpired, KeyboardInterrupt):
    pass  # too slow, or a second Ctrl-C
  for process in processes:
    process.kill()
    process.wait()
