"""What a run writes while it trains: rows of metrics, arrays of probes."""

import errno
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bn_research import disk, workdir
from bn_research.training import tensorboard


class Metrics:
  """Appends rows to `metrics.jsonl`, and gives TensorBoard a copy.

  Attributes:
    rows: All rows of the run, those of earlier processes included.
  """

  def __init__(
    self, directory: disk.PathLike, step: int, config: Mapping[str, Any]
  ):
    """Goes on after `step`; later rows, of a run that was killed, are dropped.

    Args:
      directory: The workdir.
      step: The step that the run goes on from; -1 before anything was measured.
      config: The config of the run, for TensorBoard.
    """
    self._directory = pathlib.Path(directory)
    self.rows = workdir.truncate_metrics(directory, step)
    self._path = self._directory / workdir.METRICS
    with disk.writing(self._path):
      self._file = open(self._path, 'ab', buffering=0)  # noqa: SIM115
    self._events = tensorboard.Events(directory, config)

  def append(self, row: dict[str, Any]) -> None:
    """Writes one row: `step`, and scalars by name."""
    line = disk.to_json(row).encode() + b'\n'
    with disk.writing(self._path):
      size = os.fstat(self._file.fileno()).st_size
      if self._file.write(line) < len(line):
        # A full disk takes what it can and raises nothing until the next time.
        self._file.truncate(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    self.rows.append(row)
    self._events.append(row['step'], {k: row[k] for k in row.keys() - {'step'}})

  def show(self, step: int, probe: str, arrays: Mapping[str, Any]) -> None:
    """Gives TensorBoard a copy of what a probe measured."""
    shown = {f'{probe}/{name}': value for name, value in arrays.items()}
    self._events.append(step, shown)

  def flush(self) -> None:
    """Makes sure that all rows are on the disk, and TensorBoard's copy."""
    with disk.writing(self._path):
      os.fsync(self._file.fileno())
    self._events.flush()

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    self._events.close()


class ProbeLog:
  """Collects what a probe measured; a file that is replaced as it grows."""

  def __init__(
    self,
    directory: disk.PathLike,
    name: str,
    constants: Mapping[str, np.ndarray],
    step: int,
  ):
    """Goes on after `step`; what was measured later is dropped.

    Args:
      directory: The workdir.
      name: The name of the probe.
      constants: Arrays that are stored once.
      step: The step that the run goes on from; -1 before anything was measured.
    """
    self._directory = directory
    self._name = name
    self._constants = dict(constants)
    self._columns: dict[str, list[np.ndarray]] = {'step': []}
    if step >= 0:
      self._read(step)

  def append(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps one measurement; `flush` writes it."""
    for key, value in {'step': np.int64(step), **arrays}.items():
      self._columns.setdefault(key, []).append(np.asarray(value))

  def flush(self) -> None:
    """Writes all measurements."""
    if self._columns['step']:
      stacked = {key: np.stack(rows) for key, rows in self._columns.items()}
      workdir.write_probe(
        self._directory, self._name, {**stacked, **self._constants}
      )

  def _read(self, step: int) -> None:
    arrays = workdir.read_probe(self._directory, self._name)
    kept = arrays['step'] <= step
    for key, values in arrays.items():
      if key not in self._constants:
        self._columns[key] = list(values[kept])
