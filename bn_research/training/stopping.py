"""A polite end: SIGTERM and Ctrl-C stop a run between two chunks."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stop:
  """Whether, and by what, a run was asked to stop.

  Attributes:
    signal: The signal's name; None as long as there was none.
  """

  signal: str | None = None


@contextlib.contextmanager
def on_signals() -> Iterator[Stop]:
  """Notes the first SIGTERM or SIGINT instead of dying of it.

  A second one has its usual effect. Outside the main thread, where Python
  delivers no signals, nothing is noted.
  """
  stop = Stop()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return

  def note(number: int, frame: object) -> None:
    del frame
    stop.signal = signal.Signals(number).name
    restore()

  def restore() -> None:
    for number, handler in previous.items():
      signal.signal(number, handler)

  previous = {
    number: signal.signal(number, note)
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    yield stop
  finally:
    restore()
