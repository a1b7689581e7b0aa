"""Stops a run between two chunks of steps, after a signal."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stop:
  """A request to stop a run.

  Attributes:
    signal: The name of the signal, for example 'SIGTERM'; None before a signal.
  """

  signal: str | None = None


@contextlib.contextmanager
def on_signals() -> Iterator[Stop]:
  """Notes the first SIGTERM, SIGINT or SIGHUP, and lets the process continue.

  A process that was started with `nohup` ignores SIGHUP, as `nohup` promises. A
  second signal has the usual effect. Outside of the main thread, no signal is
  noted, because Python allows signal handlers only in the main thread.

  Yields:
    A `Stop`, which gets the name of the first signal.
  """
  stop = Stop()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return

  def note(number: int, frame: object) -> None:
    del frame
    stop.signal = signal.Signals(number).name
    # A second signal can then end a process that no longer reacts.
    restore()

  def restore() -> None:
    for number, handler in previous.items():
      signal.signal(number, handler)

  noted = [signal.SIGTERM, signal.SIGINT]
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    noted.append(signal.SIGHUP)
  previous = {number: signal.signal(number, note) for number in noted}
  try:
    yield stop
  finally:
    restore()
