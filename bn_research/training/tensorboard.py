"""A copy of rows of metrics for TensorBoard, and the settings of the run."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from bn_research import disk, dotted

_SECONDS = 2.0  # from one writing to the next


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
    self._new: list[tuple[float, Mapping[str, Any]]] = []
    self._last = time.monotonic()
    self._writer: Any = None

  def append(self, row: Mapping[str, Any]) -> None:
    """Notes one row: `step`, and scalars by name."""
    self._new.append((time.time(), row))
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
      names = self._new[-1][1].keys() - {'step'}
      for page in summary.hparams(
        _settings(self._config), dict.fromkeys(names)
      ):
        event = event_pb2.Event(wall_time=time.time(), summary=page)
        self._writer.write_event(event)
    for wall_time, row in self._new:
      for name in sorted(row.keys() - {'step'}):
        scalar = summary.scalar(name, row[name])
        self._writer.write_event(
          event_pb2.Event(wall_time=wall_time, step=row['step'], summary=scalar)
        )
    self._writer.flush()


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the config by dotted key, with lists as texts."""
  return {
    key: value if isinstance(value, bool | int | float | str) else str(value)
    for key, value in dotted.flatten(config).items()
    if value is not None
  }
