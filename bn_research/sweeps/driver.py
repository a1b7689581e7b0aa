"""Runs a sweep, and prints a line per finished run with the remaining time."""

import collections
import datetime
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from bn_research import workdir
from bn_research.sweeps import live, points, pool, processes

INTERRUPTED = 130  # the exit status in shells after Ctrl-C


def run(
  sweep: Sequence[points.Point],
  shares: Sequence[Mapping[str, str]] = ({},),
  check: Callable[[Sequence[points.Point]], None] = lambda todo: None,
  retry: bool = False,
  start: pool.Start = processes.start,
) -> int:
  """Trains the incomplete points of a sweep, and prints the progress.

  Args:
    sweep: All points. A point with the status done, diverged or failed does not
      run again.
    shares: The environment variables of each job; see `pool.run`.
    check: A function of the incomplete points, called before any run starts if
      a point is incomplete. An error of the function ends the sweep.
    retry: Whether points with the status failed run again, from the last
      checkpoint.
    start: The engine; see `pool.run`.

  Returns:
    The exit status: 0 if no run failed, now or before; 1 if a run failed, or
    was lost to signals; 130 after an interrupt.
  """
  outcomes = [known(point) for point in sweep]
  again = (workdir.INCOMPLETE, *([workdir.FAILED] if retry else []))
  todo = [o.point for o in outcomes if o.status in again]
  failed = [o.point for o in outcomes if o.status in again[1:]]
  outcomes = [o for o in outcomes if o.status not in again]
  # The check starts a process that imports JAX, which takes seconds.
  if todo:
    check(todo)
  for point in failed:
    point.retry()
  print(f'{len(sweep)} runs, {len(todo)} to do', flush=True)
  tell_failed(outcomes)
  return train(todo, len(sweep), outcomes, shares, start)


def train(
  todo: Iterable[points.Point],
  total: int,
  outcomes: list[pool.Outcome],
  shares: Sequence[Mapping[str, str]],
  start: pool.Start,
  prunes: Callable[[points.Point], bool] = lambda point: False,
  note: Callable[[str], str] = lambda name: '',
) -> int:
  """Trains points, and prints a line for each run that ends, and a summary.

  Args:
    todo: The points; see `pool.run`.
    total: The number of runs, with those that were over before.
    outcomes: The outcomes of the runs that were over before. The list gets the
      outcomes of further runs.
    shares: The environment variables of each job; see `pool.run`.
    start: The engine; see `pool.run`.
    prunes: See `pool.run`.
    note: A function of the name of a run that is over: a text for its line.

  Returns:
    The exit status; see `run`.
  """
  began, before = time.monotonic(), len(outcomes)
  running: dict[str, points.Point] = {}

  def ended(outcome: pool.Outcome) -> None:
    outcomes.append(outcome)
    running.pop(outcome.point.name, None)
    left = total - len(outcomes)
    rate = (time.monotonic() - began) / (len(outcomes) - before)
    place = f'[{len(outcomes):{len(str(total))}}/{total}]'
    say(f'{place} {_line(outcome, left * rate, note(outcome.point.name))}')

  def waits(count: int) -> None:
    say(f'waiting for {count} runs that another process trains')

  def started(point: points.Point) -> None:
    running[point.name] = point

  # A scheduler ends a job with SIGTERM. SIGTERM then raises KeyboardInterrupt,
  # as Ctrl-C does, and the pool lets the runs save a checkpoint.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    with live.table(running) as say:
      pool.run(todo, shares, ended, waits, started, start, prunes)
  except KeyboardInterrupt:
    print('interrupted; the same command goes on from here', flush=True)
    return INTERRUPTED
  count = collections.Counter(outcome.status for outcome in outcomes)
  print(', '.join(f'{number} {status}' for status, number in count.items()))
  return 1 if count[workdir.FAILED] + count[pool.LOST] else 0


def known(point: points.Point) -> pool.Outcome:
  """Returns what the workdir of a point says about an earlier run."""
  status = point.read_status()
  return pool.Outcome(point, status.status, reason=status.reason)


def tell_failed(outcomes: Sequence[pool.Outcome]) -> None:
  """Prints a line for each run that failed before."""
  for outcome in outcomes:
    if outcome.status == workdir.FAILED:
      print(f'failed before: {outcome.point.name}: {outcome.reason};', end=' ')
      print('--retry=failed tries again', flush=True)


def _line(outcome: pool.Outcome, seconds_left: float, note: str) -> str:
  text = f'{outcome.status:8} {outcome.point.name}  {outcome.seconds:.1f} s'
  text += f'  {note}' if note else ''
  if outcome.reason:
    text += f': {outcome.reason}'
  if seconds_left:
    text += f' ({datetime.timedelta(seconds=round(seconds_left))} left)'
  return text
