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
    for key in where:
      if key not in self.config:
        raise errors.UserError(f'{self.path}: its config has no key {key!r}')
    return all(self.config[key] == value for key, value in where.items())

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


def load(directory: str, swept: Collection[str]) -> list[Run]:
  """Reads the runs below a directory that came to an end.

  Args:
    directory: The workdir of a sweep, or of one run.
    swept: The keys, dotted, in which the configs may differ.

  Returns:
    The runs that are done or diverged, in the order of their paths. Others are
    left out, and that is printed.

  Raises:
    UserError: If none is done, or if they are of different experiments.
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
  runs = [
    Run(
      path,
      dotted.flatten(workdir.read_config(path)),
      workdir.read_status(path),
    )
    for path in sorted(paths[workdir.DONE] + paths[workdir.DIVERGED])
  ]
  _check_one_experiment(runs, swept)
  return runs


def _workdirs(directory: str) -> Iterator[pathlib.Path]:
  """Yields the directories that hold a `config.json`, outermost ones only."""
  for path, below, files in os.walk(directory):
    if workdir.CONFIG in files:
      below.clear()
      yield pathlib.Path(path)


def _check_one_experiment(runs: Sequence[Run], swept: Collection[str]) -> None:
  first, *others = runs
  for run in others:
    for key in sorted(first.config.keys() | run.config.keys()):
      one, other = first.config.get(key), run.config.get(key)
      if one != other and key not in swept:
        raise errors.UserError(
          f'{first.path} and {run.path} are of different experiments: {key} is'
          f' {one} and {other}; give a --workdir that holds one of them'
        )
