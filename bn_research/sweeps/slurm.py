"""Submits runs as an array of Slurm, by submitit."""

import ast
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from bn_research import errors, locking
from bn_research.sweeps import extras, logs, processes
from bn_research.sweeps.points import Point

_FLAG = '--engine=slurm'
_EXAMPLE = 'partition=gpu,timeout_min=240,gpus_per_node=1'
_POLL_SECONDS = 0.2
# The signals that submitit uses for a time limit and for a preemption.
_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


class Array:
  """Submits points together, and does not wait.

  Attributes:
    jobs: The jobs of submitit, in the order of the points.
  """

  def __init__(self, text: str, folder: pathlib.Path, cluster: str = 'slurm'):
    """Checks the options, and creates no file.

    Args:
      text: Options by the names of submitit, such as `'partition=gpu'`; the
        prefix `slurm_` may be left out.
      folder: The folder for the files of submitit, which all nodes see.
      cluster: 'slurm', or 'local' for processes of this machine.

    Raises:
      UserError: If submitit is not installed, if there is no Slurm, or if
        submitit refuses an option.
    """
    extras.require('submitit', 'slurm', _FLAG)
    import submitit

    options = extras.pairs('--slurm', text, _EXAMPLE)
    if options.keys().isdisjoint(('timeout_min', 'time', 'slurm_time')):
      raise errors.UserError(
        f'--slurm={text} has no timeout_min, and submitit would end each run'
        f' after 5 minutes; give for example --slurm={_EXAMPLE}'
      )
    try:
      self._executor = submitit.AutoExecutor(folder, cluster=cluster)
    except RuntimeError as error:
      raise errors.UserError(
        f'{_FLAG}: {error}; call it on a login node of Slurm'
      ) from error
    self._set('name', folder.parent.name)
    for name, value in options.items():
      self._set(name, _literal(value))
    self.jobs: Sequence[Any] = ()

  def _set(self, name: str, value: Any) -> None:
    """Sets an option of Slurm in submitit."""
    full = f'slurm_{name.removeprefix("slurm_")}'
    try:
      self._executor.update_parameters(**{full: value})
    except (NameError, AssertionError, TypeError, ValueError) as error:
      line = str(error).partition('\n')[0]
      raise errors.UserError(f'--slurm: {name}={value}: {line}') from error

  def submit(self, points: Sequence[Point]) -> str:
    """Submits an array with a job for each point.

    Returns:
      The reason of a failure in one line; '' after a success.
    """
    commands = [point.command for point in points]
    files = [str(logs.path(point.workdir).absolute()) for point in points]
    try:
      self.jobs = self._executor.map_array(_Run(), commands, files)
    except (RuntimeError, OSError) as error:
      # The output of sbatch is in the last line.
      return str(error).strip().split('\n')[-1]
    return ''


def _literal(text: str) -> Any:
  """Returns a number, a list or a truth value; otherwise the text."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


class _Run:
  """The function of a job, which trains a run in a process of its own."""

  def __init__(self) -> None:
    self._process: subprocess.Popen | None = None

  def __call__(self, command: Sequence[str], log: str) -> None:
    """Trains, and raises an error if the command fails."""
    # Slurm sends a signal to all processes of a job. submitit handles the
    # signal, and the run would die of the signal: it ignores the signal.
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
      signal.signal(number, signal.SIG_IGN)
    self._process = processes.start(command, {}, pathlib.Path(log))
    for number, handler in handlers.items():
      signal.signal(number, handler)
    # `checkpoint` runs in a handler, and could not wait within a `wait`.
    while (code := self._process.poll()) is None:
      time.sleep(_POLL_SECONDS)
    if code not in (0, locking.Busy.exit_status):
      raise RuntimeError(f'exit status {code}; see {log}')

  def checkpoint(self, command: Sequence[str], log: str) -> Any:
    """Ends the run with a checkpoint, and returns the submission to requeue."""
    import submitit

    if self._process is not None:
      self._process.terminate()
      # The loop above takes the exit status.
      os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
    return submitit.helpers.DelayedSubmission(_Run(), command, log)


def folder(workdir: str) -> pathlib.Path:
  """Returns the folder for the files of submitit, in the workdir of a sweep."""
  return pathlib.Path(workdir).absolute() / 'slurm'
