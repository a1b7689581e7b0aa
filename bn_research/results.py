"""Workdirs as objects: from the files of runs to arrays, tables and models.

    run = bn_research.load('runs/first')
    runs = bn_research.load_all('runs/fig1').select({'model.norm.name': 'none'})

Reading changes no file. NumPy suffices, except for `Run.model` and for
`Runs.to_pandas`.
"""

import csv
import dataclasses
import functools
import io
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from bn_research import disk, dotted, errors, registry, workdir


@dataclasses.dataclass(frozen=True)
class Run:
  """A run, read from its workdir.

  Attributes:
    path: Its workdir.
    config: Its config, by dotted key.
    status: How it ended, or how far it is.
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

    A key that is absent is one that is None: a factory's default.
    """
    # JSON has lists for the tuples of a config.
    return all(
      _plain(self.config.get(k)) == _plain(v) for k, v in where.items()
    )

  def value(self, key: str) -> Any:
    """Returns the value of a dotted key of the config.

    Raises:
      UserError: If the config lacks it.
    """
    if key not in self.config:
      raise errors.UserError(f'{self.path}: its config has no key {key!r}')
    return self.config[key]

  @functools.cached_property
  def metrics(self) -> dict[str, np.ndarray]:
    """All metrics: (k,) float64 by name; NaN where a row lacks one."""
    names = dict.fromkeys(name for row in self._rows for name in row)
    return {
      name: np.asarray([row.get(name, np.nan) for row in self._rows], float)
      for name in names
    }

  @functools.cached_property
  def probes(self) -> dict[str, dict[str, np.ndarray]]:
    """All that probes measured: arrays by name, by the key of the probe.

    `step` (k,) says when; the first axis of other arrays is k, but for what is
    stored once.
    """
    folder = self.path / workdir.PROBES
    keys = sorted(path.stem for path in folder.glob('*.npz'))
    return {key: workdir.read_probe(self.path, key) for key in keys}

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

  def model(self) -> Any:
    """Returns the network with the parameters of the newest checkpoint.

    Returns:
      An `nnx.Module`, called as `model(x, train=False)`; x is what the network
      saw, (batch, *shape) float32: see `bn_research.data.input_function`.

    Raises:
      UserError: If there is no whole checkpoint.
    """
    from bn_research.training import restoring

    return restoring.model(self.path)

  @functools.cached_property
  def _rows(self) -> list[dict[str, Any]]:
    rows = workdir.read_metrics(self.path)
    # Reading ends at a damaged line: what a run without an end may have there.
    is_over = self.status.status in (workdir.DONE, workdir.DIVERGED)
    if is_over and (not rows or rows[-1]['step'] < self.status.step):
      raise errors.UserError(
        f'{self.path / workdir.METRICS} is damaged: it ends before step'
        f' {self.status.step}; remove that workdir and train again'
      )
    return rows


def _plain(value: Any) -> Any:
  """Returns lists for tuples, as JSON has them."""
  is_list = isinstance(value, list | tuple)
  return [_plain(item) for item in value] if is_list else value


class Runs(tuple[Run, ...]):
  """Several runs, in the order of their paths."""

  __slots__ = ()

  def select(self, where: Mapping[str, Any] | None = None, **more: Any) -> Self:
    """Returns the runs whose configs hold these values.

    Args:
      where: Values by dotted key.
      **more: Further values; two underscores stand for a dot, as in
        `model__norm__name='none'`.

    Raises:
      UserError: If none of the configs has a key.
    """
    wanted = dict(where or {})
    wanted |= {key.replace('__', '.'): value for key, value in more.items()}
    self.check_keys(wanted)
    return type(self)(run for run in self if run.matches(wanted))

  def check_keys(self, keys: Iterable[str]) -> None:
    """Raises a UserError if no config has a key."""
    known = {key for run in self for key in run.config}
    for key in keys:
      if self and key not in known:
        raise errors.UserError(
          f'no run has the setting {key!r}{registry.hint(key, known)}'
        )

  def settings(self) -> list[str]:
    """Returns the dotted keys in whose values the runs differ."""
    keys = dict.fromkeys(str(key) for run in self for key in run.config)
    texts = lambda key: {json.dumps(run.config.get(key)) for run in self}
    return [key for key in keys if len(texts(key)) > 1]

  def first_columns(self) -> list[dict[str, Any]]:
    """Returns what tells runs apart: path, status, and settings that differ."""
    settings = self.settings()
    return [
      {
        'run': str(run.path),
        'status': run.status.status,
        **{key: run.config.get(key) for key in settings},
      }
      for run in self
    ]

  def rows(self) -> Iterator[dict[str, Any]]:
    """Yields the rows of metrics of all runs, as one table.

    Each row begins with the columns of `first_columns`.
    """
    for run, first in zip(self, self.first_columns(), strict=True):
      metrics = run.metrics
      for k in range(len(metrics.get('step', ()))):
        yield first | {name: values[k] for name, values in metrics.items()}

  def to_pandas(self) -> Any:
    """Returns the table of `rows` as a `pandas.DataFrame`.

    Raises:
      UserError: If pandas is not installed.
    """
    try:
      import pandas as pd
    except ImportError as error:
      raise errors.UserError(
        'to_pandas needs pandas: pip install pandas; to_csv does without'
      ) from error
    return pd.DataFrame(list(self.rows()))

  def to_csv(self, path: disk.PathLike) -> None:
    """Writes the table of `rows` as a file of comma-separated values."""
    text = csv_of(list(self.rows()))
    disk.write_atomically(path, lambda file: file.write(text.encode()))


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns a table as comma-separated values; a row may lack some columns."""
  names = dict.fromkeys(name for row in rows for name in row)
  file = io.StringIO(newline='')
  writer = csv.DictWriter(file, list(names))
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def load(directory: disk.PathLike) -> Run:
  """Reads the run of a workdir, whatever its status.

  Args:
    directory: The workdir.

  Raises:
    UserError: If it is no workdir of a run.
  """
  return Run(
    pathlib.Path(directory),
    dotted.flatten(workdir.read_config(directory)),
    workdir.read_status(directory),
  )


def load_all(directory: disk.PathLike) -> Runs:
  """Reads all runs below a directory, whatever their status.

  Args:
    directory: The workdir of a sweep, or of one run.

  Raises:
    UserError: If there is no run.
  """
  return Runs(load(path) for path in workdirs(directory))


def workdirs(directory: disk.PathLike) -> list[pathlib.Path]:
  """Returns the directories that hold a `config.json`, outermost ones only.

  Raises:
    UserError: If there is none.
  """
  found = []
  for path, below, files in os.walk(directory):
    if workdir.CONFIG in files:
      below.clear()
      found.append(pathlib.Path(path))
  if not found:
    raise errors.UserError(
      f'{directory} has no runs; train some with python -m bn_research.sweep'
    )
  return sorted(found)
