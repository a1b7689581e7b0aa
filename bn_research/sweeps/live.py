"""A table of the runs that a sweep trains at the moment, on a terminal."""

import contextlib
import datetime
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bn_research import disk, workdir
from bn_research.sweeps import overview
from bn_research.sweeps.points import Point

Say = Callable[[str], None]


@contextlib.contextmanager
def table(running: Mapping[str, Point]) -> Iterator[Say]:
  """Shows a table of runs, a second up to date, until the `with` block ends.

  Without a terminal, for example in the file of a scheduler, there is no table.

  Args:
    running: The runs by name. The table has the runs that are in the mapping
      at the time.

  Returns:
    A function that prints a line above the table.
  """
  if not sys.stdout.isatty():
    yield functools.partial(print, flush=True)
    return
  import rich.console
  import rich.live

  console = rich.console.Console()

  def say(line: str) -> None:
    # The names of runs are no markup, and a long line is not cut.
    console.print(line, markup=False, highlight=False, soft_wrap=True)

  with rich.live.Live(
    console=console,
    get_renderable=lambda: rendered(list(running.values()), time.time()),
    refresh_per_second=1,
    transient=True,
  ):
    yield say


def rendered(points: Sequence[Point], now: float) -> Any:
  """Returns a table of runs as a `rich.table.Table`.

  Args:
    points: The runs.
    now: The time, in seconds since 1970.
  """
  import rich.table
  import rich.text

  if not points:
    return rich.text.Text()
  titles = ('run', 'step', 'of', 'steps/s', 'left', 'last row')
  rows = [(point.name, *_cells(point, now)) for point in points]
  result = rich.table.Table(box=None, pad_edge=False, expand=True)
  for title, *cells in zip(titles, *rows, strict=True):
    is_text = title in ('run', 'last row')
    result.add_column(
      title,
      justify='left' if is_text else 'right',
      no_wrap=True,
      # On a narrow terminal, texts are cut, and numbers are not.
      width=None if is_text else max(map(len, (title, *cells))),
      ratio=1 if is_text else None,
    )
  for row in rows:
    result.add_row(*map(rich.text.Text, row))
  return result


def _cells(point: Point, now: float) -> tuple[str, ...]:
  """Returns step, number of steps, rate, time left and the last row."""
  num_steps = point.config['num_steps']
  total = f'{num_steps:,}'
  rows = workdir.read_metrics(point.workdir)
  last = rows[-1] if rows else {}
  step, seconds = last.get('step', 0), last.get('seconds', 0)
  if not step or not seconds:
    return '0', total, '', '', overview.numbers(last)
  rate = step / seconds
  written = disk.modified(point.workdir / workdir.METRICS)
  # The run has trained since the last row.
  left = max(0.0, (num_steps - step) / rate - (now - written))
  return (
    f'{step:,}',
    total,
    f'{rate:,.0f}' if rate >= 100 else f'{rate:.3g}',
    str(datetime.timedelta(seconds=round(left))),
    overview.numbers(last),
  )
