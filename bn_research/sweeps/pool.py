"""Trains the points of a sweep in a pool of processes."""

import collections
import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from bn_research import disk, locking, workdir
from bn_research.sweeps import child, logs, points

# The outcome after signals ended a run. A signal does not mean an error of the
# run, and the status in the workdir stays `INCOMPLETE`.
LOST = 'lost'
# The outcome if another process, such as a second sweep, trains the run.
BUSY = 'busy'

# `child` needs the standard library only. The options -I and -S start Python
# faster, without site-packages and without the environment variables of Python.
_CHILD = (sys.executable, '-I', '-S', child.__file__)
_ATTEMPTS = 3
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 30.0  # between SIGTERM and SIGKILL, for a last checkpoint


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The outcome of a run.

  Attributes:
    point: The point of the sweep.
    status: `DONE`, `DIVERGED` or `FAILED` of `workdir`, or `LOST` or `BUSY`.
    seconds: The duration of the last attempt.
    reason: The reason of the status, in a single line; '' without a reason.
  """

  point: points.Point
  status: str
  seconds: float = 0.0
  reason: str = ''


@dataclasses.dataclass(frozen=True)
class _Attempt:
  point: points.Point
  number: int
  place: int
  start: float
  process: subprocess.Popen


def run(
  todo: Sequence[points.Point],
  shares: Sequence[Mapping[str, str]],
  ended: Callable[[Outcome], None],
  waits: Callable[[int], None] = lambda count: None,
  started: Callable[[points.Point], None] = lambda point: None,
) -> None:
  """Trains points, each point in a separate process.

  The file `log.txt` in the workdir has the output of a run. If a signal ends a
  run, the run starts again from the last checkpoint, until the third signal.
  After an interrupt of this function, all processes get SIGTERM and time for a
  checkpoint. On Linux the processes get SIGTERM also after a SIGKILL of the
  calling process.

  Args:
    todo: The points, in the order of the starts.
    shares: For each of the runs at the same time, further environment
      variables, such as the GPU of the run.
    ended: A function of the outcome of a run, called after the end of the run.
    waits: A function of a number of runs, called when all runs that are left
      are trained by another process. The pool waits for the end of these runs.
    started: A function of a point, called when the process of the run starts.
  """
  waiting = collections.deque((point, 1) for point in todo)
  running: list[_Attempt] = []
  is_told = False
  places = list(range(len(shares)))  # of `shares`, without a run
  try:
    while waiting or running:
      while places and (free := _take(waiting)):
        # Another process may have trained the run in the meantime.
        status = free[0].read_status()
        if status.status == workdir.INCOMPLETE:
          place = places.pop(0)
          running.append(_start(*free, place, shares[place]))
          started(free[0])
        else:
          ended(Outcome(free[0], status.status, reason=status.reason))
      if waiting and not running and not is_told:
        waits(len(waiting))
        is_told = True
      time.sleep(_POLL_SECONDS)
      for attempt in [a for a in running if a.process.poll() is not None]:
        running.remove(attempt)
        places.append(attempt.place)
        outcome = _outcome(attempt)
        if outcome.status == LOST and attempt.number < _ATTEMPTS:
          # The lost run goes to the front, to keep the order of the sweep.
          waiting.appendleft((attempt.point, attempt.number + 1))
        elif outcome.status == BUSY:
          waiting.append((attempt.point, attempt.number))
        else:
          ended(outcome)
  finally:
    _stop([attempt.process for attempt in running])


def _take(
  waiting: collections.deque[tuple[points.Point, int]],
) -> tuple[points.Point, int] | None:
  """Removes the first run that no other process trains, and returns the run."""
  for place, (point, number) in enumerate(waiting):
    if not locking.is_held(point.workdir):
      del waiting[place]
      return point, number
  return None


def _start(
  point: points.Point, number: int, place: int, share: Mapping[str, str]
) -> _Attempt:
  disk.make_folder(point.workdir)
  path = logs.path(point.workdir)
  with disk.writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a') as log:
      print('+', shlex.join(point.command), file=log, flush=True)
      process = subprocess.Popen(
        [*_CHILD, str(os.getpid()), *point.command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **share},
        # In a separate process group, Ctrl-C does not reach the run. The parent
        # gets the signal alone, and `_stop` then ends all runs in order.
        process_group=0,
      )
  return _Attempt(point, number, place, time.monotonic(), process)


def _outcome(attempt: _Attempt) -> Outcome:
  seconds = time.monotonic() - attempt.start
  status = attempt.point.read_status()
  code = attempt.process.returncode
  if status.status != workdir.INCOMPLETE:
    return Outcome(attempt.point, status.status, seconds, status.reason)
  if code == locking.Busy.exit_status:
    return Outcome(attempt.point, BUSY, seconds)
  if code > 0:
    line = _last_line(logs.path(attempt.point.workdir))
    reason = line.removeprefix('error: ')
    return Outcome(attempt.point, workdir.FAILED, seconds, reason)
  # A run that catches SIGTERM saves a checkpoint and exits with status 0. The
  # code of a process that a signal ended is the negative number of the signal.
  name = signal.Signals(-code or signal.SIGTERM).name
  reason = f'lost to {name} {attempt.number} times; start again to go on'
  return Outcome(attempt.point, LOST, seconds, reason)


def _last_line(path: pathlib.Path) -> str:
  lines = path.read_text(errors='replace').split('\n')
  return next((line.strip() for line in reversed(lines) if line.strip()), '')


def _stop(processes: Sequence[subprocess.Popen]) -> None:
  """Ends processes with SIGTERM, and after a time limit with SIGKILL."""
  for process in processes:
    process.terminate()
  try:
    for process in processes:
      process.wait(_GRACE_SECONDS)
  except (subprocess.TimeoutExpired, KeyboardInterrupt):
    pass  # The runs are too slow, or the user pressed Ctrl-C again.
  for process in processes:
    process.kill()
    process.wait()
