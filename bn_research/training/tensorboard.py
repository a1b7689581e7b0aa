"""A copy of rows and probes for TensorBoard, and the settings of the run."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from bn_research import disk, dotted

_SECONDS = 2.0  # from one writing to the next
_BINS = 30
_MAX_NUMBERS = 10_000  # A histogram of more numbers takes long.


class Events:
  """Appends rows to a file of events, which grows within seconds.

  A run that was killed, and goes on, writes some rows again, into a new file:
  TensorBoard shows the same numbers at the same steps.
  """

  def __init__(self, directory: disk.PathLike, config: Mapping[str, Any]):
    """Writes nothing yet.

    Args:
      directory: The workdir.
      config: The config of the run, for the page of hyperparameters.
    """
    self._directory = pathlib.Path(directory)
    self._config = config
    self._new: list[tuple[float, int, Mapping[str, Any]]] = []
    self._last = time.monotonic()
    self._writer: Any = None

  def append(self, step: int, values: Mapping[str, Any]) -> None:
    """Notes what was measured at one step.

    Args:
      step: The step.
      values: By name: scalars, which become curves, and arrays, which become
        histograms.
    """
    self._new.append((time.time(), step, values))
    if time.monotonic() - self._last >= _SECONDS:
      self.flush()

  def flush(self) -> None:
    """Writes what was noted."""
    if self._new:
      with disk.writing(self._directory):
        self._write()
    self._new.clear()
    self._last = time.monotonic()

  def close(self) -> None:
    """Closes the file."""
    if self._writer is not None:
      self._writer.close()

  def _write(self) -> None:
    # Imported late, and written here rather than by the writer's own thread,
    # where an error of the disk would be lost.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    if self._writer is None:
      prefix, suffix = str(self._directory / 'events'), f'.{time.time_ns()}'
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
  """Returns the numbers of an array, if a histogram of them can be drawn."""
  if not 0 < value.size <= _MAX_NUMBERS or value.dtype.kind == 'c':
    return None
  with np.errstate(over='ignore'):
    numbers = value.ravel().astype(np.float32)
  return numbers.astype(np.float64) if np.isfinite(numbers).all() else None


def _edges(numbers: np.ndarray) -> np.ndarray:
  """Returns the edges of bins, which differ even if all numbers are equal."""
  low, high = numbers.min(), numbers.max()
  least = 1e-6 * max(abs(low), abs(high), 1e-30)
  return low + max(high - low, least) * np.linspace(0, 1, _BINS + 1)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the config by dotted key, with lists as texts."""
  return {
    key: value if isinstance(value, bool | int | float | str) else str(value)
    for key, value in dotted.flatten(config).items()
    if value is not None
  }
