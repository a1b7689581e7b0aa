"""Reads workdirs as objects: arrays, tables and models from the files of runs.

    run = bn_research.load('runs/first')
    runs = bn_research.load_all('runs/fig1').select({'model.norm.name': 'none'})

Reading changes no file. No package except NumPy is necessary, except for
`Run.model` and for `Runs.to_pandas`.
"""

import csv
import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from bn_research import disk, dotted, errors, registry, workdir


@dataclasses.dataclass(frozen=True)
class Run:
  """A run, read from a workdir.

  Attributes:
    path: The workdir: a `pathlib.Path` on a disk.
    config: The config, by dotted key.
    status: The status of the run, with the number of completed steps.
  """

  path: pathlib.PurePath
  config: Mapping[str, Any]
  status: workdir.Status

  @property
  def is_done(self) -> bool:
    """Whether the run completed all training steps."""
    return self.status.status == workdir.DONE

  def matches(self, where: Mapping[str, Any]) -> bool:
    """Returns whether the config has these values; see `matches`."""
    return matches(self.config, where)

  def value(self, key: str) -> Any:
    """Returns the value at a dotted key of the config.

    Raises:
      UserError: If the config does not have the key.
    """
    if key not in self.config:
      raise errors.UserError(f'{self.path}: its config has no key {key!r}')
    return self.config[key]

  @functools.cached_property
  def metrics(self) -> dict[str, np.ndarray]:
    """All metrics by name, float64 (k,); NaN for a row without the metric."""
    names = dict.fromkeys(name for row in self._rows for name in row)
    return {
      name: np.asarray([row.get(name, np.nan) for row in self._rows], float)
      for name in names
    }

  @functools.cached_property
  def probes(self) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of all probes: by key of the probe, and by name of the array.

    `step` (k,) contains the steps of the measurements. The first axis of each
    further array has size k, except for constants, which are stored once.
    """
    files = workdir.probe_files(self.path)
    keys = [pathlib.PurePath(name).stem for name in files]
    read = workdir.read_probe
    return {key: read(self.path, key, self.status) for key in keys}

  def columns(self, *names: str) -> list[np.ndarray]:
    """Returns metrics as columns, of the rows with all of these metrics.

    Args:
      *names: Names of metrics.

    Returns:
      A float64 array (k,) for each name.

    Raises:
      UserError: If no row has all of these metrics.
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
    """Returns the steps of a probe, (k,), and a measured array, (k, ...).

    Args:
      name: The key of the probe.
      array: The name of the array.

    Raises:
      UserError: If the run does not have the probe, or if the probe does not
        have the array.
    """
    arrays = workdir.read_probe(self.path, name, self.status)
    if array not in arrays:
      there = ', '.join(sorted(arrays.keys() - {'step'}))
      raise errors.UserError(
        f'the probe {name!r} of {self.path} has no {array!r}; there are {there}'
      )
    return arrays['step'], arrays[array]

  def model(self) -> Any:
    """Returns the network with the parameters of the newest checkpoint.

    The statistics for inference are the running statistics of the training,
    also for a run whose rows are measured with re-estimated statistics.

    Returns:
      An `nnx.Module`, called as `model(x, train=False)`. The input x is float32
      (batch, *shape), computed from stored images by the function from
      `bn_research.data.input_function`.

    Raises:
      UserError: If the run has no checkpoint, or if the newest checkpoint is
        damaged.
    """
    # This import loads JAX, and no further method needs JAX.
    from bn_research.training import restoring

    return restoring.model(self.path)

  @functools.cached_property
  def _rows(self) -> list[dict[str, Any]]:
    rows = workdir.read_metrics(self.path)
    # Reading ends at a damaged line. An interrupted run may have a damaged last
    # line, but a run that is over must have all rows.
    is_short = not rows or rows[-1]['step'] < self.status.step
    is_whole = workdir.has_whole_metrics(self.path, self.status)
    if self.status.is_over and (is_short or not is_whole):
      raise errors.UserError(
        f'{self.path / workdir.METRICS} is damaged; the command that trained'
        ' the run restores it'
      )
    return rows


def matches(config: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
  """Returns whether a config has these values.

  Args:
    config: A config by dotted key. A missing key equals a key with the value
      None, because both stand for the default of a factory.
    where: Values by dotted key.
  """
  # A file of JSON has lists for the tuples of a config.
  return all(_plain(config.get(k)) == _plain(v) for k, v in where.items())


def _plain(value: Any) -> Any:
  """Returns a value with lists in place of tuples, as in JSON."""
  is_list = isinstance(value, list | tuple)
  return [_plain(item) for item in value] if is_list else value


class Runs(tuple[Run, ...]):
  """Several runs, in the order of their paths."""

  __slots__ = ()

  def select(self, where: Mapping[str, Any] | None = None, **more: Any) -> Self:
    """Returns the runs whose configs have the given values.

    Args:
      where: Values by dotted key.
      **more: Further values. In the name of an argument, two underscores stand
        for a dot: `model__norm__name='none'`.

    Raises:
      UserError: If a key is in no config.
    """
    wanted = dict(where or {})
    wanted |= {key.replace('__', '.'): value for key, value in more.items()}
    self.check_keys(wanted)
    return type(self)(run for run in self if run.matches(wanted))

  def check_keys(self, keys: Iterable[str]) -> None:
    """Raises a UserError if a key is in no config."""
    known = {key for run in self for key in run.config}
    for key in keys:
      if self and key not in known:
        raise errors.UserError(
          f'no run has the setting {key!r}{registry.hint(key, known)}'
        )

  def settings(self) -> list[str]:
    """Returns the dotted keys whose values differ between the runs."""
    # Values are compared as text, because a set cannot contain lists.
    keys = dict.fromkeys(str(key) for run in self for key in run.config)
    texts = lambda key: {json.dumps(run.config.get(key)) for run in self}
    return [key for key in keys if len(texts(key)) > 1]

  def first_columns(self) -> list[dict[str, Any]]:
    """Returns the path, the status and the differing settings of each run."""
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
    """Yields the rows of metrics of all runs, as a single table.

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
    """Writes the table of `rows` as a file of comma-separated values (CSV)."""
    text = csv_of(list(self.rows()))
    disk.write_atomically(path, lambda file: file.write(text.encode()))


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns a table as comma-separated values; rows may lack columns."""
  names = dict.fromkeys(name for row in rows for name in row)
  file = io.StringIO(newline='')
  writer = csv.DictWriter(file, list(names))
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def load(directory: disk.PathLike) -> Run:
  """Reads the run of a workdir, with any status.

  Args:
    directory: The workdir.

  Raises:
    UserError: If the directory is not the workdir of a run.
  """
  config = workdir.read_config(directory)
  status = workdir.read_status(directory)
  return Run(
    disk.path(directory),
    dotted.flatten(config),
    workdir.towards(status, config.get('num_steps', 0)),
  )


def load_all(directory: disk.PathLike) -> Runs:
  """Reads all runs below a directory, with any status.

  Args:
    directory: The workdir of a sweep, or of a single run.

  Raises:
    UserError: If the directory contains no run.
  """
  return Runs(load(path) for path in workdirs(directory))


def workdirs(directory: disk.PathLike) -> list[pathlib.PurePath]:
  """Returns the outermost directories with a `config.json`, sorted by path.

  Raises:
    UserError: If no directory has a `config.json`.
  """
  found = workdir.find(directory)
  if not found:
    raise errors.UserError(
      f'{directory} has no runs; train some with python -m bn_research.sweep'
    )
  return found
