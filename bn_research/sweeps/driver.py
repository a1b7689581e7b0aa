"""A sweep as a person sees it: one line a run, and the time left."""

import collections
import datetime
import signal
import time
from collections.abc import Sequence

from bn_research import workdir
from bn_research.sweeps import points, pool

_INTERRUPTED = 130  # a shell's code of a command that Ctrl-C ended


def run(sweep: Sequence[points.Point], jobs: int = 1) -> int:
  """Trains the points of a sweep that are still to do, and says how it goes.

  Args:
    sweep: All points. Those done, diverged or failed before are left alone.
    jobs: How many run at a time.

  Returns:
    The exit status: 0, or 1 where a run failed.
  """
  outcomes = [_known(point) for point in sweep]
  todo = [o.point for o in outcomes if o.status == workdir.INCOMPLETE]
  outcomes = [o for o in outcomes if o.status != workdir.INCOMPLETE]
  print(f'{len(sweep)} runs, {len(todo)} to do', flush=True)
  for outcome in outcomes:
    if outcome.status == workdir.FAILED:
      print(f'failed before: {outcome.point.name}: {outcome.reason};', end=' ')
      print(f'to try again, remove {outcome.point.workdir}', flush=True)
  start = time.monotonic()

  def ended(outcome: pool.Outcome) -> None:
    outcomes.append(outcome)
    left = len(sweep) - len(outcomes)
    rate = (time.monotonic() - start) / (len(todo) - left)
    place = f'[{len(outcomes):{len(str(len(sweep)))}}/{len(sweep)}]'
    print(place, _line(outcome, left * rate), flush=True)

  # Told to end, by a scheduler for one, is handled as Ctrl-C is.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    pool.run(todo, jobs, ended)
  except KeyboardInterrupt:
    print('interrupted; the same command goes on from here', flush=True)
    return _INTERRUPTED
  count = collections.Counter(outcome.status for outcome in outcomes)
  print(', '.join(f'{number} {status}' for status, number in count.items()))
  return 1 if count[workdir.FAILED] + count[pool.LOST] else 0


def is_known(point: points.Point) -> bool:
  """Whether a run is done, diverged or failed, and is not trained again."""
  return _known(point).status != workdir.INCOMPLETE


def _known(point: points.Point) -> pool.Outcome:
  status = point.read_status()
  return pool.Outcome(point, status.status, reason=status.reason)


def _line(outcome: pool.Outcome, seconds_left: float) -> str:
  text = f'{outcome.status:8} {outcome.point.name}  {outcome.seconds:.1f} s'
  if outcome.reason:
    text += f': {outcome.reason}'
  if seconds_left:
    text += f' ({datetime.timedelta(seconds=round(seconds_left))} left)'
  return text
