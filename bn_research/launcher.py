"""Starts the processes of one run on this machine, and starts lost ones again.

JAX aborts the processes of a run when one of them dies, and no code of a run
can prevent this. A program outside of the run therefore starts all processes
again, and the run goes on from the last checkpoint.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from bn_research import errors
from bn_research.sweeps import devices, processes

_POLL_SECONDS = 0.05
# Between the end of one process and the end of the others by force.
_GRACE_SECONDS = 5.0
_INTERRUPTED = 130  # the exit status in shells after Ctrl-C


def run(
  command: Sequence[str], count: int, num_devices: int, max_restarts: int
) -> int:
  """Trains a run in several processes of this machine.

  Args:
    command: The command of a single process.
    count: The number of processes.
    num_devices: The number of devices of the run.
    max_restarts: How often all processes are started again after a signal, or
      JAX, ended one of them.

  Returns:
    The exit status of the run.

  Raises:
    UserError: If the processes cannot share the devices.
  """
  environments = _environments(count, num_devices)
  with _noting_signals() as noted:
    for left in range(max_restarts, -1, -1):
      with _Group(command, environments) as group:
        status, lost = group.wait(noted)
      if lost is None:
        return status
      if noted:
        break
      print(f'process {lost} of {count} was lost to {_name(status)}', end='')
      if not left:
        print('; the same command goes on from the last checkpoint')
        return 1
      print(f'; all start again from the last checkpoint ({left} left)')
  print('interrupted; the same command goes on from the last checkpoint')
  return _INTERRUPTED


def _environments(count: int, num_devices: int) -> list[Mapping[str, str]]:
  """Returns the environment variables of each process."""
  if num_devices % count:
    raise errors.UserError(
      f'--processes={count} does not divide num_devices={num_devices}; choose a'
      ' divisor'
    )
  # Each virtual device of a CPU belongs to one process.
  share = {'JAX_NUM_CPU_DEVICES': str(num_devices // count)}
  return [{**share, **own} for own in devices.shares(devices.find(), count)]


class _Group:
  """The processes of a run, which end together."""

  def __init__(
    self, command: Sequence[str], environments: Sequence[Mapping[str, str]]
  ):
    self._stack = contextlib.ExitStack()
    self._logs: list[IO[bytes]] = []
    flags = [
      f'--coordinator=127.0.0.1:{_free_port()}',
      f'--num_processes={len(environments)}',
    ]
    self._processes = [
      self._start([*command, *flags, f'--process_id={k}'], environ, k)
      for k, environ in enumerate(environments)
    ]

  def __enter__(self) -> '_Group':
    return self

  def __exit__(self, *error: object) -> None:
    for process in self._processes:
      process.kill()
      process.wait()
    self._stack.close()

  def _start(
    self, command: Sequence[str], environ: Mapping[str, str], number: int
  ) -> subprocess.Popen:
    # The first process alone prints. What the others print is shown if one of
    # these ends the run.
    log = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    self._logs.append(log)
    return subprocess.Popen(
      processes.owned(command),
      stdin=subprocess.DEVNULL,
      stdout=log if number else None,
      stderr=log,
      env={**os.environ, **environ},
      process_group=0,
    )

  def wait(self, noted: Sequence[int]) -> tuple[int, int | None]:
    """Waits for the end of the run.

    Args:
      noted: The signals of this process, each of which goes to all processes.

    Returns:
      The exit status, and the number of the process that a signal or JAX
      ended; None if none was ended.
    """
    passed = 0
    while True:
      for number in noted[passed:]:
        for process in self._processes:
          process.send_signal(number)
      passed = len(noted)
      codes = [process.poll() for process in self._processes]
      ended = [k for k, code in enumerate(codes) if code is not None]
      bad = [k for k in ended if codes[k]]
      if bad or len(ended) == len(codes):
        break
      time.sleep(_POLL_SECONDS)
    first = bad[0] if bad else 0
    code = codes[first] or 0
    # An error of the user reaches all processes, and each ends by itself.
    self._wait_for_all(_GRACE_SECONDS if bad else 0)
    if code >= 0:
      self._show(first)
    return code, first if code < 0 else None

  def _wait_for_all(self, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      if all(process.poll() is not None for process in self._processes):
        return
      time.sleep(_POLL_SECONDS)

  def _show(self, number: int) -> None:
    """Prints the errors of a process."""
    log = self._logs[number]
    log.seek(0)
    sys.stderr.write(log.read().decode(errors='replace'))
    sys.stderr.flush()


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[int]]:
  """Gives a list of the signals that ask this process to end."""
  noted: list[int] = []

  def note(number: int, frame: object) -> None:
    del frame
    noted.append(signal.SIGTERM if number == signal.SIGINT else number)

  before = {
    number: signal.signal(number, note)
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    yield noted
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _free_port() -> int:
  with socket.socket() as sock:
    sock.bind(('127.0.0.1', 0))
    return sock.getsockname()[1]


def _name(code: int) -> str:
  return signal.Signals(-code).name
