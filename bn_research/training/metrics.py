"""Writes rows of metrics, and arrays of probes, while a run trains."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bn_research import disk, errors, json_text, workdir
from bn_research.training import rows, tensorboard


class Metrics:
  """Appends rows to `metrics.jsonl`, and to the events of TensorBoard.

  Attributes:
    rows: All rows of the run, those of earlier processes included.
  """

  def __init__(
    self, directory: disk.PathLike, step: int, config: Mapping[str, Any]
  ):
    """Continues the file after `step`, and drops later rows of a killed run.

    Args:
      directory: The workdir.
      step: The step that the run goes on from; -1 before anything was measured.
      config: The config of the run, for TensorBoard.
    """
    self.rows = workdir.truncate_metrics(directory, step)
    path = disk.path(directory, workdir.METRICS)
    self._file = rows.open_file(path, self._content())
    self._events = tensorboard.Events(directory, config)

  def append(self, row: dict[str, Any]) -> None:
    """Writes a row: `step`, and scalars by name."""
    self._file.append(json_text.of(row).encode() + b'\n')
    self.rows.append(row)
    self._events.append(row['step'], {k: row[k] for k in row.keys() - {'step'}})

  def tick(self) -> None:
    """Gives rows that wait for their bucket a chance; call often."""
    self._file.tick()

  def show(self, step: int, probe: str, arrays: Mapping[str, Any]) -> None:
    """Writes a measurement of a probe to the events of TensorBoard."""
    shown = {f'{probe}/{name}': value for name, value in arrays.items()}
    self._events.append(step, shown)

  def flush(self) -> None:
    """Waits until all rows and events are in the workdir.

    The file is compared with the rows in memory: a checkpoint must not keep,
    and a status must not seal, a file that was changed while the run trained.
    """
    self._file.flush(self._content())
    self._events.flush()

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    self._events.close()

  def _content(self) -> bytes:
    return b''.join(json_text.of(row).encode() + b'\n' for row in self.rows)


class ProbeLog:
  """Collects the measurements of a probe, and writes the file of the probe."""

  def __init__(
    self,
    directory: disk.PathLike,
    name: str,
    constants: Mapping[str, np.ndarray],
    step: int,
  ):
    """Continues the file after `step`, and drops later measurements.

    Args:
      directory: The workdir.
      name: The key of the probe.
      constants: Arrays that are stored once.
      step: The step that the run goes on from; -1 before any measurement.

    Raises:
      UserError: If the file has other constants.
    """
    self._directory = directory
    self._name = name
    self._constants = dict(constants)
    self._columns: dict[str, list[np.ndarray]] = {'step': []}
    if step >= 0:
      self._read(step)

  def append(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps a measurement until `flush` writes the file.

    Raises:
      UserError: If the arrays have other names or shapes than before, as after
        a change of the code of the probe.
    """
    row = {
      key: np.asarray(value)
      for key, value in {'step': np.int64(step), **arrays}.items()
    }
    if self._columns['step']:
      before = {key: rows[0].shape for key, rows in self._columns.items()}
      now = {key: value.shape for key, value in row.items()}
      if before != now:
        raise self._changed(before, now)
    for key, value in row.items():
      self._columns.setdefault(key, []).append(value)

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
      if key in self._constants:
        if not np.array_equal(values, self._constants[key]):
          raise self._changed({key: values}, {key: self._constants[key]})
      elif values.shape[:1] != kept.shape:
        # Each measured array has a row for each step.
        raise self._changed({key: 'a constant'}, {})
      else:
        self._columns[key] = list(values[kept])

  def _changed(
    self, before: Mapping[str, Any], now: Mapping[str, Any]
  ) -> errors.UserError:
    """Returns the error of a probe whose results no longer fit the file."""
    differing = [
      f'{key} {before.get(key, "absent")} before, {now.get(key, "absent")} now'
      for key in sorted(before.keys() | now.keys())
      if str(before.get(key)) != str(now.get(key))
    ]
    return errors.UserError(
      f'the probe {self._name!r} of {self._directory} changed'
      f' ({"; ".join(differing)}); use the old probe, or another --workdir'
    )
