"""Runs a command, and lets the command save when this process is killed.

    python guard.py CHILD COMMAND...

CHILD is the path of `child.py`. A Ray worker that ends kills its children with
SIGKILL, and a run cannot save then. This process stands in between: the command
gets SIGTERM if this process gets SIGTERM, or is killed.
"""

import os
import signal
import subprocess
import sys


def main() -> None:
  """Runs the command, and ends as the command ends."""
  child, *command = sys.argv[1:]
  python = (sys.executable, '-I', '-S')
  process = subprocess.Popen([*python, child, str(os.getpid()), *command])
  signal.signal(signal.SIGTERM, lambda *_: process.terminate())
  code = process.wait()
  if code < 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
  sys.exit(code)


if __name__ == '__main__':
  main()
