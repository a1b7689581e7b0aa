"""Starts the command of a run as a process of this machine."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

from bn_research.sweeps import child

# `child` needs the standard library only. The options -I and -S start Python
# faster, without site-packages and without the environment variables of Python.
_CHILD = (sys.executable, '-I', '-S', child.__file__)


def owned(command: Sequence[str]) -> list[str]:
  """Returns a command that gets SIGTERM when the calling thread ends.

  Args:
    command: The command, with the path of the program.
  """
  return [*_CHILD, str(os.getpid()), *command]


def start(
  command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path
) -> subprocess.Popen:
  """Starts a command, whose output goes to the end of a file.

  On Linux the command gets SIGTERM when the calling thread ends, also after a
  SIGKILL of this process.

  Args:
    command: The command, with the path of the program.
    environment: Further environment variables.
    log: The file, in a folder that exists.

  Raises:
    OSError: If the file cannot be opened, or if a program does not exist.
  """
  with open(log, 'a') as file:
    return subprocess.Popen(
      owned(command),
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
      env={**os.environ, **environment},
      # In a separate process group, Ctrl-C does not reach the run. The parent
      # gets the signal alone, and then ends all runs in order.
      process_group=0,
    )
