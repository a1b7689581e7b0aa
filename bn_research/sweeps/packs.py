"""An engine that trains many runs in one process: `sweep --pack`.

Runs that start at the same time go to one process, which trains them together
where their programs differ in numbers only, and one after another otherwise.
For the pool, a run of a pack is a job like any other: with an exit status, and
started again after a signal.
"""

import itertools
import json
import pathlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bn_research.sweeps import pool, processes
from bn_research.sweeps.points import Point

_LINES = 20  # of a process that failed, for the log of each of its runs


def obstacle(config: Mapping[str, Any]) -> str:
  """Returns why a run cannot be in a pack; '' if the run can.

  Args:
    config: The config of the run, in the form of `config.json`.
  """
  if config['num_devices'] > 1:
    return f'config.num_devices={config["num_devices"]}, and a pack gives 1'
  if config['data'].get('stream') is not None:
    return 'config.data.stream, and a pack has the data in memory'
  return ''


def divide(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
  """Returns the runs that packs can train, and the rest, whose reason is told.

  Args:
    points: The points of a sweep.
  """
  packed: list[Point] = []
  rest: list[Point] = []
  for point in points:
    if reason := obstacle(point.config):
      print(f'not in a pack: {point.name}: {reason}', flush=True)
    (rest if reason else packed).append(point)
  return packed, rest


def form(config: Mapping[str, Any]) -> str:
  """Returns a text that is the same for configs that one pack may train.

  Such configs differ in the seed and in real numbers, and have the same data.

  Args:
    config: The config of a run, in the form of `config.json`.
  """
  rest = {k: v for k, v in config.items() if k not in ('seed', 'data')}
  return json.dumps([config['data'], _without_numbers(rest)], sort_keys=True)


def _without_numbers(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _without_numbers(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_without_numbers(item) for item in value]
  return 'a number' if isinstance(value, float) else value


class Engine:
  """Starts processes that each train the runs which start at the same time."""

  def __init__(
    self,
    points: Sequence[Point],
    shares: Sequence[Mapping[str, str]],
    request: Mapping[str, Any],
    folder: pathlib.Path,
  ):
    """Starts nothing yet.

    Args:
      points: The runs that may start.
      shares: The environment variables of each process at the same time.
      request: The keys `folder` and `data_dir` of a request, which
        `bn_research.pack` describes.
      folder: A folder of this machine for requests and answers.
    """
    self._points = {point.command: point for point in points}
    self._shares, self._request, self._folder = shares, request, folder
    self._numbers = itertools.count()
    self._waiting: list[_Job] = []
    self._processes: list[_Process] = []

  def start(
    self,
    command: Sequence[str],
    environ: Mapping[str, str],
    log: pathlib.Path,
  ) -> '_Job':
    """Notes a run, which starts with the next question for its state."""
    del environ  # Of a process of the run alone.
    job = _Job(self, self._points[tuple(command)], log)
    self._waiting.append(job)
    return job

  def launch(self) -> None:
    """Starts the processes of all runs that wait.

    The runs of a lost process start again together: nothing starts as long as
    the pool has not asked for the end of each of these runs.
    """
    if any(process.is_partly_told for process in self._processes):
      return
    shares = [
      k
      for k in range(len(self._shares))
      if all(one.share != k or one.has_ended for one in self._processes)
    ]
    if not shares:
      return
    order = list(self._points.values())
    jobs = sorted(
      (job for job in self._waiting if not job.has_ended),
      key=lambda job: (form(job.point.config), order.index(job.point)),
    )
    self._waiting = []
    count = min(len(shares), len(jobs))
    for k, share in enumerate(shares[:count]):
      some = jobs[k * len(jobs) // count : (k + 1) * len(jobs) // count]
      path = self._folder / f'{next(self._numbers)}.json'
      process = _Process(path, some, self._request, share, self._shares[share])
      self._processes.append(process)
      for job in some:
        job.process = process


class _Job:
  """A run that waits, or that a process trains."""

  def __init__(self, engine: Engine, point: Point, log: pathlib.Path):
    self.point, self.log = point, log
    self.process: _Process | None = None
    self._engine = engine
    self._ended: int | None = None  # A signal before the start.

  @property
  def has_ended(self) -> bool:
    """Whether a signal came before the start."""
    return self._ended is not None

  def poll(self) -> int | None:
    """Returns the exit status of the run; None before the end."""
    if self.process is None and not self.has_ended:
      self._engine.launch()
    if self.process is None:
      return self._ended
    return self.process.status_of(self)

  def terminate(self) -> None:
    """Lets the process save all of its runs."""
    if self.process is None:
      self._ended = -signal.SIGTERM
    else:
      self.process.terminate()

  def kill(self) -> None:
    """Ends the process."""
    if self.process is None:
      self._ended = -signal.SIGKILL
    else:
      self.process.job.kill()


class _Process:
  """A process that trains runs."""

  def __init__(
    self,
    path: pathlib.Path,
    jobs: Sequence[_Job],
    request: Mapping[str, Any],
    share: int,
    environ: Mapping[str, str],
  ):
    """Writes the request, and starts the process."""
    self._ended = path.with_suffix('.ended')
    self._log = path.with_suffix('.txt')
    self.share = share
    self._is_terminated, self._count = False, len(jobs)
    self._told: set[str] = set()
    self._size, self._known = 0, dict[str, int]()
    path.write_text(json.dumps({**request, 'groups': _groups(jobs)}))
    command = (sys.executable, '-m', 'bn_research.pack', str(path))
    self.job: pool.Job = processes.start(command, environ, self._log)

  def status_of(self, job: _Job) -> int | None:
    """Returns the exit status of a run; None before the end."""
    # In this order: a process may end between the two questions.
    code = self.job.poll()
    statuses = self._statuses()
    # The last run ends with the process, so that no process is left behind.
    if code is None and len(statuses) == self._count:
      return None
    status = statuses.get(str(job.point.workdir), code)
    if status is not None and job.point.name not in self._told:
      self._tell(job, is_alone=str(job.point.workdir) not in statuses)
    return status

  def _tell(self, job: _Job, is_alone: bool) -> None:
    """Notes the end of a run, and tells what the process printed."""
    if not self._told:
      for line in _lines(self._log.with_suffix('.told')):
        print(f'not in one pack: {line}', flush=True)
    self._told.add(job.point.name)
    # The process ended without a word on the run.
    if is_alone and (lines := _lines(self._log)):
      with open(job.log, 'a') as file:
        print(*lines[-_LINES:], sep='\n', file=file)

  @property
  def is_partly_told(self) -> bool:
    """Whether the process ended, and the pool knows the end of some runs."""
    return self.has_ended and len(self._told) < self._count

  @property
  def has_ended(self) -> bool:
    """Whether the process ended."""
    return self.job.poll() is not None

  def terminate(self) -> None:
    """Sends SIGTERM once, because a second signal would end the process."""
    if not self._is_terminated:
      self._is_terminated = True
      self.job.terminate()

  def _statuses(self) -> dict[str, int]:
    # The pool asks many times a second, for each run.
    size = self._ended.stat().st_size if self._ended.exists() else 0
    if size != self._size:
      self._size = size
      self._known = dict(map(json.loads, _lines(self._ended)))
    return self._known


def _lines(path: pathlib.Path) -> list[str]:
  """Returns the lines of a file, which may be missing."""
  if not path.exists():
    return []
  return path.read_text(errors='replace').splitlines()


def _groups(jobs: Sequence[_Job]) -> list[list[dict[str, Any]]]:
  """Returns the runs of a request, in groups that may train together."""
  groups: dict[str, list[dict[str, Any]]] = {}
  for job in jobs:
    point = job.point
    groups.setdefault(form(point.config), []).append(
      {
        'config': point.config,
        'workdir': str(point.workdir),
        'command': list(point.command),
        'log': str(job.log),
      }
    )
  return list(groups.values())
