"""The runs below a directory, as a report reads them."""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bn_research import dotted, errors, workdir


@dataclasses.dataclass(frozen=True)
class Run:
  """A run that came to an end.

  Attributes:
    path: Its workdir.
    config: Its config, by dotted key.
    status: How it ended: done or diverged.
  """

  path: pathlib.Path
  config: Mapping[str, Any]
  status: workdir.Status

  @property
  def is_done(self) -> bool:
    """Whether it trained all its steps."""
    return self.status.status == workdir.DONE

  def matches(self, where: Mapping[str, Any]) -> bool:
    """Whether the config holds these values, by dotted key.

    Raises:
      UserError: If the config lacks a key.
    """
    return {key: self.value(key) for key in where} == dict(where)

  def value(self, key: str) -> Any:
    """Returns the value of a dotted key of the config.

    Raises:
      UserError: If the config lacks it.
    """
    if key not in self.config:
      raise errors.UserError(f'{self.path}: its config has no key {key!r}')
    return self.config[key]

  def columns(self, *names: str) -> list[np.ndarray]:
    """Returns (k,) columns of the rows of metrics that have them all.

    Raises:
      UserError: If there is no such row.
    """
    rows = [row for row in self._rows if row.keys() >= set(names)]
    if not rows:
      there = set().union(*self._rows)
      missing = ', '.join(sorted(set(names) - there) or names)
      raise errors.UserError(
        f'{self.path} has no metric {missing}; there are'
        f' {", ".join(sorted(there))}'
      )
    return [np.asarray([row[name] for row in rows], float) for name in names]

  def probe(self, name: str, array: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (k,) steps, and the (k, ...) array that a probe took there.

    Raises:
      UserError: If the run has no such probe, or the probe no such array.
    """
    arrays = workdir.read_probe(self.path, name)
    if array not in arrays:
      there = ', '.join(sorted(arrays.keys() - {'step'}))
      raise errors.UserError(
        f'the probe {name!r} of {self.path} has no {array!r}; there are {there}'
      )
    return arrays['step'], arrays[array]

  @functools.cached_property
  def _rows(self) -> list[dict[str, Any]]:
    rows = workdir.read_metrics(self.path)
    # Reading ends at a damaged line: what a run without an end may have there.
    if not rows or rows[-1]['step'] < self.status.step:
      raise errors.UserError(
        f'{self.path / workdir.METRICS} is damaged: it ends before step'
        f' {self.status.step}; remove that workdir and train again'
      )
    return rows


def load(directory: str) -> list[Run]:
  """Reads the runs below a directory that came to an end.

  Args:
    directory: The workdir of a sweep, or of one run.

  Returns:
    The runs that are done or diverged, in the order of their paths. Others are
    left out, and that is printed.

  Raises:
    UserError: If none is done.
  """
  paths = collections.defaultdict(list)
  for path in _workdirs(directory):
    paths[workdir.read_status(path).status].append(path)
  if not paths:
    raise errors.UserError(
      f'{directory} has no runs; train some with python -m bn_research.sweep'
    )
  for status in (workdir.INCOMPLETE, workdir.FAILED):
    for path in paths[status]:
      print(f'left out, because {status}: {path}')
  if not paths[workdir.DONE]:
    raise errors.UserError(
      f'{directory} has no run that is done; go on with the command that trains'
    )
  return [
    Run(
      path,
      dotted.flatten(workdir.read_config(path)),
      workdir.read_status(path),
    )
    for path in sorted(paths[workdir.DONE] + paths[workdir.DIVERGED])
  ]


def _workdirs(directory: str) -> Iterator[pathlib.Path]:
  """Yields the directories that hold a `config.json`, outermost ones only."""
  for path, below, files in os.walk(directory):
    if workdir.CONFIG in files:
      below.clear()
      yield pathlib.Path(path)


def of_experiment(
  runs: Sequence[Run],
  points: Sequence[Mapping[str, Any]],
  swept: Collection[str],
) -> list[Run]:
  """Chooses the runs of an experiment, whatever their seeds.

  Args:
    runs: Runs.
    points: The configs of the experiment's runs.
    swept: The keys, dotted, that tell these runs apart.

  Returns:
    The runs whose configs are among the points. Those that differ from them in
    swept keys alone are left out, and that is printed.

  Raises:
    UserError: If a run differs in another key, or none is left.
  """
  kept, others = [], []
  for run in runs:
    differing = _from_nearest(run, points)
    foreign = [text for key, text in differing.items() if key not in swept]
    if foreign:
      raise _another_config(run, foreign[0])
    if differing:
      others.append((run, next(iter(differing.values()))))
    else:
      kept.append(run)
  if not kept:
    raise _another_config(*others[0])
  for run, text in others:
    print(f'left out, because not in sweep(): {run.path} ({text})')
  return kept


def _from_nearest(
  run: Run, points: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
  """Compares a run with the point that it has most in common with."""
  here = ({**point, 'seed': run.config.get('seed')} for point in points)
  return min((workdir.differences(run.config, p) for p in here), key=len)


def _another_config(run: Run, text: str) -> errors.UserError:
  return errors.UserError(
    f'{run.path} holds a run of another config ({text}); give the --config that'
    ' it was trained with, and each --config.KEY=VALUE, or another --workdir'
  )
