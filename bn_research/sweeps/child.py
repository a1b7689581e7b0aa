"""Becomes a command that ends with the process that started it.

    python child.py PARENT COMMAND...

On Linux the command gets SIGTERM when the process PARENT is gone, however it
went. A program of its own, since Python code between fork and exec can hang.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
  """Replaces this process by the command."""
  parent, *command = sys.argv[1:]
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  if os.getppid() == int(parent):  # else it went before the line above
    os.execv(command[0], command)


if __name__ == '__main__':
  main()
