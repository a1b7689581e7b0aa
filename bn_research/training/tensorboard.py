"""Writes metrics, probes and the settings of a run for TensorBoard."""

import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from bn_research import disk, dotted
from bn_research.training import rows

_SECONDS = 2.0  # The time between two writes to the file on a disk.
_BINS = 30
_MAX_NUMBERS = 10_000  # A histogram of more numbers takes too much time.


class Events:
  """Appends measurements to an event file, at intervals of a few seconds.

  A run that continues after a kill writes some rows again, into a new file.
  TensorBoard then shows the same numbers at the same steps.
  """

  def __init__(self, directory: disk.PathLike, config: Mapping[str, Any]):
    """Creates no file yet.

    Args:
      directory: The workdir.
      config: The config of the run, for the hyperparameter page of TensorBoard.
    """
    self._directory = disk.path(directory)
    self._config = config
    # In a bucket, the file is whole at each write, and a copy on the disk
    # grows. The events are a by-product, hence a kill may leave the copy.
    self._copy: tempfile.TemporaryDirectory | None = None
    self._seconds = _SECONDS
    if disk.is_bucket(directory):
      self._copy = tempfile.TemporaryDirectory(prefix='bn_research-')
      self._seconds = rows.SECONDS
    self._new: list[tuple[float, int, Mapping[str, Any]]] = []
    self._last = time.monotonic()
    self._writer: Any = None

  def append(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds the measurements of a step.

    Args:
      step: The step.
      values: Scalars and arrays by name. A scalar becomes a point of a curve,
        and an array becomes a histogram.
    """
    self._new.append((time.time(), step, values))
    if time.monotonic() - self._last >= self._seconds:
      self.flush()

  def flush(self) -> None:
    """Writes all added measurements to the file."""
    if self._new:
      with disk.writing(self._directory):
        self._write()
      self._publish()
    self._new.clear()
    self._last = time.monotonic()

  def close(self) -> None:
    """Closes the file."""
    if self._writer is not None:
      self._writer.close()
    if self._copy is not None:
      self._copy.cleanup()

  def _publish(self) -> None:
    """Writes the file of events to the bucket, if there is one."""
    if self._copy is not None:
      for path in pathlib.Path(self._copy.name).iterdir():
        disk.write_bytes(self._directory / path.name, path.read_bytes())

  def _write(self) -> None:
    # The late import keeps the start of a run short. `EventsWriter` writes in
    # this thread, because a background thread would lose an error of the disk.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    if self._writer is None:
      folder = self._copy.name if self._copy else self._directory
      prefix, suffix = str(disk.path(folder, 'events')), f'.{time.time_ns()}'
      self._writer = event_file_writer.EventsWriter(prefix, suffix)
      names = {
        name: None
        for *_, values in self._new
        for name, value in values.items()
        if np.ndim(value) == 0
      }
      for page in summary.hparams(_settings(self._config), names):
        event = event_pb2.Event(wall_time=time.time(), summary=page)
        self._writer.write_event(event)
    for wall_time, step, values in self._new:
      for name in sorted(values):
        value = np.asarray(values[name])
        if value.ndim == 0:
          # tensorboardX prints a warning for each number that is not finite.
          if value.dtype.kind == 'c' or not np.isfinite(value):
            continue
          shown = summary.scalar(name, value)
        elif (numbers := _numbers(value)) is not None:
          shown = summary.histogram(name, numbers, _edges(numbers))
        else:
          continue
        self._writer.write_event(
          event_pb2.Event(wall_time=wall_time, step=step, summary=shown)
        )
    self._writer.flush()


def _numbers(value: np.ndarray) -> np.ndarray | None:
  """Returns the numbers of an array, or None if no histogram is possible."""
  if not 0 < value.size <= _MAX_NUMBERS or value.dtype.kind == 'c':
    return None
  # A number outside of the range of float32 becomes infinite, and the array
  # then has no histogram.
  with np.errstate(over='ignore'):
    numbers = value.ravel().astype(np.float32)
  return numbers.astype(np.float64) if np.isfinite(numbers).all() else None


def _edges(numbers: np.ndarray) -> np.ndarray:
  """Returns increasing edges of bins, even if all numbers are equal."""
  low, high = numbers.min(), numbers.max()
  least = 1e-6 * max(abs(low), abs(high), 1e-30)
  return low + max(high - low, least) * np.linspace(0, 1, _BINS + 1)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the config by dotted key, with lists as text."""
  return {
    key: value if isinstance(value, bool | int | float | str) else str(value)
    for key, value in dotted.flatten(config).items()
    if value is not None
  }
