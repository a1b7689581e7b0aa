"""Starts a command that ends together with the parent process.

    python child.py PARENT COMMAND...

PARENT is the process id of the parent. On Linux the command gets SIGTERM when
the parent ends, also after a SIGKILL of the parent. This module is a separate
program, because Python code between fork and exec (the `preexec_fn` of
subprocess) can hang.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
  """Replaces this process by the command, if the parent is alive."""
  parent, *command = sys.argv[1:]
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  # If the parent ended before the call of `prctl`, no signal will come.
  if os.getppid() == int(parent):
    os.execv(command[0], command)


if __name__ == '__main__':
  main()
