"""A table of the runs of a sweep, from the workdirs alone."""

import collections
import datetime
import pathlib
import time
from collections.abc import Mapping, Sequence

from bn_research import disk, locking, workdir
from bn_research.sweeps.points import Point

_TITLES = ('state', 'step', 'of', 'last row', 'changed', 'run')
TRAINING = 'training'
TO_DO = 'to do'

_NONE: Mapping[str, str] = {}


def table(points: Sequence[Point], states: Mapping[str, str] = _NONE) -> str:
  """Returns a line for each run of a sweep, and the number of runs by state.

  The states are those of `status.json`; `training` for a run that a process
  trains at the moment; `to do` for a run that has no checkpoint or row yet.

  Args:
    points: The points of a sweep.
    states: States that no `status.json` has, by the name of the run.
  """
  rows = [_row(point, states.get(point.name)) for point in points]
  widths = [
    max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)
  ]
  lines = [_line(row, widths) for row in (_TITLES, *rows)]
  counts = collections.Counter(row[0] for row in rows)
  lines.append(
    ', '.join(f'{number} {state}' for state, number in counts.items())
  )
  return '\n'.join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
  cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
  return '  '.join(cells).rstrip()


def _row(point: Point, known: str | None) -> tuple[str, ...]:
  status = point.read_status()
  state, step = status.status, status.step
  rows = workdir.read_metrics(point.workdir)
  if state == workdir.INCOMPLETE:
    # A run writes its status at checkpoints, and its rows more often.
    step = max(step, rows[-1]['step'] if rows else 0)
    if known is not None:
      state = known
    elif locking.is_held(point.workdir):
      state = TRAINING
    elif not step:
      state = TO_DO
  last = rows[-1] if rows else {}
  return (
    state,
    f'{step:,}',
    f'{point.config["num_steps"]:,}',
    numbers(last),
    _age(point.workdir),
    point.name + (f': {status.reason}' if status.reason else ''),
  )


def numbers(row: Mapping[str, float | None]) -> str:
  """Returns the losses and the accuracies of a row of metrics as text.

  Args:
    row: The row, by column.
  """
  return ' '.join(
    f'{key}={value:.4g}'
    for key, value in row.items()
    if key.endswith(('_loss', '_accuracy')) and value is not None
  )


def _age(directory: pathlib.PurePath) -> str:
  """Returns the time since the last change of a workdir, in words."""
  times = [
    disk.modified(path)
    for name in (workdir.STATUS, workdir.METRICS)
    if disk.exists(path := directory / name)
  ]
  if not times:
    return ''
  seconds = max(0, round(time.time() - max(times)))
  return f'{datetime.timedelta(seconds=seconds)} ago'
