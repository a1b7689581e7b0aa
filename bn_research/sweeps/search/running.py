"""Runs a search: the points to train, the runs to prune, and the best run."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from bn_research import locking, workdir
from bn_research.sweeps import driver, points, pool
from bn_research.sweeps.search import settings as settings_lib
from bn_research.sweeps.search import suggestions, trials

# A function of a trial, which returns the point.
MakePoint = Callable[[trials.Trial], points.Point]


class Search:
  """The trials of a search in a workdir.

  Attributes:
    settings: The settings.
    directory: The workdir of the search, with a workdir for each trial.
    points: The point of each trial that exists, by the name of the run.
  """

  def __init__(
    self, settings: settings_lib.Settings, directory: str, make: MakePoint
  ):
    self.settings = settings
    self.directory = directory
    self._make = make
    self._sizes: dict[str, int] = {}
    self._steps: dict[str, int] = {}
    self.read()
    suggestions.check(settings, self.past())

  def read(self) -> None:
    """Reads the trials in the workdir."""
    self._over: dict[str, trials.Past] = {}
    self._trials = {t.name: t for t in trials.read(self.directory)}
    self.points = {n: self._make(t) for n, t in self._trials.items()}

  def past(self) -> list[trials.Past]:
    """Reads the trials, in the order of the numbers."""
    return [self._past(name) for name in self._trials]

  def retry(self) -> None:
    """Makes failed trials incomplete, which continue from a checkpoint."""
    for name, point in self.points.items():
      if self.state(name) == workdir.FAILED:
        point.retry()
        del self._over[name]

  def state(self, name: str) -> str:
    """Returns a status of `workdir`, or `PRUNED`."""
    return self._past(name).state

  def new(self, count: int) -> Iterator[points.Point]:
    """Draws a trial after the other, up to a number of trials in all."""
    while len(self._trials) < count:
      number = 1 + max((t.number for t in self._trials.values()), default=-1)
      values = suggestions.suggest(self.settings, self.past(), number)
      if values is None:
        return
      trial = trials.Trial(number, values)
      point = self._make(trial)
      # The values are on the disk before the run starts: the search goes on
      # with the same trial after any end.
      trial.write(self.directory)
      self._trials[trial.name], self.points[trial.name] = trial, point
      yield point

  def prunes(self, point: points.Point) -> bool:
    """Returns whether a run shall end, and notes the end in the workdir."""
    path = pathlib.Path(point.workdir, workdir.METRICS)
    size = path.stat().st_size if path.exists() else 0
    # The pool asks many times a second, and a row comes now and then.
    if self.settings.pruner is None or size == self._sizes.get(point.name, 0):
      return False
    self._sizes[point.name] = size
    others = [past for past in self.past() if past.trial.name != point.name]
    rows = self._past(point.name).rows
    for step in sorted(rows):
      if step > self._steps.get(point.name, -1):
        self._steps[point.name] = step
        here = {k: value for k, value in rows.items() if k <= step}
        if self._prunes_at(step, point.name, here, others):
          return True
    return False

  def _prunes_at(
    self,
    step: int,
    name: str,
    rows: Mapping[int, float],
    others: Sequence[trials.Past],
  ) -> bool:
    """Asks the pruner about a row, and writes the answer to the workdir."""
    trial = self._trials[name]
    current = trials.Past(trial, workdir.INCOMPLETE, None, rows)
    is_pruned, attributes = suggestions.prunes(self.settings, others, current)
    if is_pruned or attributes != trial.attributes:
      trial = dataclasses.replace(
        trial, attributes=attributes, pruned=step if is_pruned else None
      )
      trial.write(self.directory)
      self._trials[name] = trial
    return is_pruned

  def note(self, name: str) -> str:
    """Returns the objective and the values of a trial as text."""
    past = self._past(name)
    numbers = {self.settings.objective: past.value}
    told = {**({} if past.value is None else numbers), **past.trial.parameters}
    return ' '.join(
      f'{key}={value:.4g}' if isinstance(value, float) else f'{key}={value}'
      for key, value in told.items()
    )

  def best(self) -> trials.Past | None:
    """Returns the trial with the best objective; None without a number."""
    done = [(p.value, p) for p in self.past() if p.value is not None]
    pick = max if self.settings.direction == 'maximize' else min
    return pick(done, key=lambda pair: pair[0])[1] if done else None

  def _past(self, name: str) -> trials.Past:
    if (past := self._over.get(name)) is None:
      trial, objective = self._trials[name], self.settings.objective
      status = self.points[name].read_status().status
      past = trials.past(trial, status, self.directory, objective)
      # A pruner asks often, and a trial that is over stays as it is. A run may
      # be done before it notices that it was pruned.
      if past.state not in (workdir.INCOMPLETE, trials.PRUNED):
        self._over[name] = past
    return past


def run(
  search: Search,
  count: int,
  shares: Sequence[Mapping[str, str]],
  start: pool.Start,
  retry: bool = False,
) -> int:
  """Trains trials until there are as many as asked for, and prints the best.

  Args:
    search: The search. Trials that are incomplete go on first.
    count: The number of trials, with those that are over.
    shares: The environment variables of each job; see `pool.run`.
    start: The engine; see `pool.run`.
    retry: Whether trials with the status failed run again.

  Returns:
    The exit status; see `driver.run`.

  Raises:
    Busy: If another process runs a search in this workdir.
  """
  with locking.exclusive(search.directory):
    search.read()
    if retry:
      search.retry()
    states = {name: search.state(name) for name in search.points}
    left = [n for n, state in states.items() if state == workdir.INCOMPLETE]
    over = [
      dataclasses.replace(driver.known(search.points[name]), status=state)
      for name, state in states.items()
      if name not in left
    ]
    total = max(count, len(states))
    print(f'{total} trials, {total - len(over)} to do', flush=True)
    driver.tell_failed(over)
    todo = itertools.chain((search.points[n] for n in left), search.new(count))
    code = driver.train(
      todo, total, over, shares, start, search.prunes, search.note
    )
  if code != driver.INTERRUPTED and len(search.points) < count:
    print(f'the sampler finds no new values after {len(search.points)} trials')
  if (best := search.best()) is not None:
    print(f'best: {best.trial.name}  {search.note(best.trial.name)}')
  return code
