"""Trains the points of a sweep, several at a time.

An engine starts the command of a run: as a process of this machine, or on a
node of a cluster. The pool knows an engine as a function, and a run as a `Job`.
"""

import collections
import contextlib
import dataclasses
import pathlib
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from bn_research import disk, locking, workdir
from bn_research.sweeps import logs, points, processes

# The outcome after signals ended a run. A signal does not mean an error of the
# run, and the status in the workdir stays `INCOMPLETE`.
LOST = 'lost'
# The outcome if another process, such as a second sweep, trains the run.
BUSY = 'busy'
# The outcome of a run that the caller of the pool ended early.
PRUNED = 'pruned'

_ATTEMPTS = 3
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 30.0  # between SIGTERM and SIGKILL, for a last checkpoint


class Job(Protocol):
  """A command that an engine has started, such as a `subprocess.Popen`."""

  def poll(self) -> int | None:
    """Returns the exit status; None before the end.

    The status of a command that a signal ended, or that was lost with its
    node, is the negative number of a signal.
    """

  def terminate(self) -> None:
    """Sends SIGTERM, which a run uses to save a checkpoint."""

  def kill(self) -> None:
    """Ends the command at once, or together with the next checkpoint."""


# A function of a command, of further environment variables, and of a file for
# the output, in a folder that exists. The function does not wait.
Start = Callable[[Sequence[str], Mapping[str, str], pathlib.Path], Job]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The outcome of a run.

  Attributes:
    point: The point of the sweep.
    status: `DONE`, `DIVERGED` or `FAILED` of `workdir`, or `LOST`, `BUSY` or
      `PRUNED`.
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
  job: Job


# Runs that are taken from the source and do not train, with the attempt.
_Waiting = collections.deque[tuple[points.Point, int]]


def run(
  todo: Iterable[points.Point],
  shares: Sequence[Mapping[str, str]],
  ended: Callable[[Outcome], None],
  waits: Callable[[int], None] = lambda count: None,
  started: Callable[[points.Point], None] = lambda point: None,
  start: Start = processes.start,
  prunes: Callable[[points.Point], bool] = lambda point: False,
) -> None:
  """Trains points, each point by a separate command.

  The file `log.txt` in the workdir has the output of a run. If a signal ends a
  run, the run starts again from the last checkpoint, until the third signal.
  After an interrupt of this function, all runs get SIGTERM and time for a
  checkpoint. On Linux the runs get SIGTERM also after a SIGKILL of the calling
  process.

  Args:
    todo: The points, in the order of the starts. The pool takes a point when
      there is room for a further run, hence a point can depend on outcomes.
    shares: For each of the runs at the same time, further environment
      variables, such as the GPU of the run.
    ended: A function of the outcome of a run, called after the end of the run.
    waits: A function of a number of runs, called when all runs that are left
      are trained by another process. The pool waits for the end of these runs.
    started: A function of a point, called when the command of the run starts.
    start: The engine.
    prunes: A function of a point whose run trains, called again and again. With
      the result True the run gets SIGTERM, and does not start again.
  """
  source = iter(todo)
  waiting: _Waiting = collections.deque()
  pruned: set[str] = set()
  running: list[_Attempt] = []
  is_told = False
  places = list(range(len(shares)))  # of `shares`, without a run
  try:
    while True:
      while places and (free := _take(waiting, source)):
        # Another process may have trained the run in the meantime.
        status = free[0].read_status()
        if status.status == workdir.INCOMPLETE:
          place = places.pop(0)
          job = _start(free[0], shares[place], start)
          running.append(_Attempt(*free, place, time.monotonic(), job))
          started(free[0])
        else:
          ended(Outcome(free[0], status.status, reason=status.reason))
      if not waiting and not running:
        break
      if not running and not is_told:
        waits(len(waiting))
        is_told = True
      time.sleep(_POLL_SECONDS)
      for attempt in list(running):
        name = attempt.point.name
        if (code := attempt.job.poll()) is not None:
          running.remove(attempt)
          places.append(attempt.place)
          _settle(
            _outcome(attempt, code, name in pruned), attempt, waiting, ended
          )
        elif name not in pruned and prunes(attempt.point):
          pruned.add(name)
          attempt.job.terminate()
  finally:
    _stop([attempt.job for attempt in running])


def _take(
  waiting: _Waiting,
  source: Iterator[points.Point],
) -> tuple[points.Point, int] | None:
  """Removes the first run that no other process trains, and returns the run."""
  for place, (point, number) in enumerate(waiting):
    if not locking.is_held(point.workdir):
      del waiting[place]
      return point, number
  for point in source:
    if not locking.is_held(point.workdir):
      return point, 1
    waiting.append((point, 1))
  return None


def _start(point: points.Point, share: Mapping[str, str], start: Start) -> Job:
  disk.make_folder(point.workdir)
  log = logs.path(point.workdir)
  with disk.writing(log):
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'a') as file:
      print('+', shlex.join(point.command), file=file)
    return start(point.command, share, log)


def _settle(
  outcome: Outcome,
  attempt: _Attempt,
  waiting: _Waiting,
  ended: Callable[[Outcome], None],
) -> None:
  """Lets a lost or a busy run wait again, and reports any other outcome."""
  if outcome.status == LOST and attempt.number < _ATTEMPTS:
    # The lost run goes to the front, to keep the order of the sweep.
    waiting.appendleft((attempt.point, attempt.number + 1))
  elif outcome.status == BUSY:
    waiting.append((attempt.point, attempt.number))
  else:
    ended(outcome)


def _outcome(attempt: _Attempt, code: int, is_pruned: bool) -> Outcome:
  seconds = time.monotonic() - attempt.start
  status = attempt.point.read_status()
  if status.status != workdir.INCOMPLETE:
    return Outcome(attempt.point, status.status, seconds, status.reason)
  if code == locking.Busy.exit_status:
    return Outcome(attempt.point, BUSY, seconds)
  if code > 0:
    line = _last_line(logs.path(attempt.point.workdir))
    reason = line.removeprefix('error: ')
    return Outcome(attempt.point, workdir.FAILED, seconds, reason)
  if is_pruned:
    return Outcome(attempt.point, PRUNED, seconds)
  # A run that catches SIGTERM saves a checkpoint and exits with status 0. The
  # code of a process that a signal ended is the negative number of the signal.
  name = signal.Signals(-code or signal.SIGTERM).name
  reason = f'lost to {name} {attempt.number} times; start again to go on'
  return Outcome(attempt.point, LOST, seconds, reason)


def _last_line(path: pathlib.Path) -> str:
  lines = path.read_text(errors='replace').split('\n')
  return next((line.strip() for line in reversed(lines) if line.strip()), '')


def _stop(jobs: Sequence[Job]) -> None:
  """Ends jobs with SIGTERM, and after a time limit with SIGKILL."""
  for job in jobs:
    job.terminate()
  # With a second Ctrl-C, the user does not want to wait for the checkpoints.
  with contextlib.suppress(KeyboardInterrupt):
    _wait(jobs)
  for job in jobs:
    job.kill()
  _wait(jobs)


def _wait(jobs: Sequence[Job]) -> None:
  """Waits for the end of jobs, at most for the time limit."""
  end = time.monotonic() + _GRACE_SECONDS
  while time.monotonic() < end and any(job.poll() is None for job in jobs):
    time.sleep(_POLL_SECONDS)
