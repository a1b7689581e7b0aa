"""What Ctrl-C does while a command starts.

Python raises KeyboardInterrupt at any line. During the import of JAX this
prints a traceback, and within a callback of JAX the exception is lost. While a
command starts nothing is at stake, and the process just ends.
"""

import re
import signal
import sys


def end_a_starting_command() -> None:
  """Lets Ctrl-C end the process, if this process is a command of the package.

  The package calls this function at its import. While Python looks for the
  module of `python -m bn_research.train`, `sys.argv[0]` is `-m`.
  """
  name = r'(-\w*m)?bn_research\.\w+'
  is_command = any(re.fullmatch(name, arg) for arg in sys.orig_argv)
  if sys.argv[:1] == ['-m'] and is_command:
    end_the_process()


def end_the_process() -> None:
  """Lets Ctrl-C end the process, without a traceback."""
  # A process in the background of a shell script ignores Ctrl-C.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_an_exception() -> None:
  """Lets Ctrl-C raise KeyboardInterrupt, as Python does."""
  if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)
