"""Command lines as they were meant, before a parser sees them."""

import os
import re
from collections.abc import Sequence

from bn_research import errors


def tidy(argv: Sequence[str]) -> list[str]:
  """Returns arguments with the home directory in place of a tilde.

  Shells replace that of `--workdir ~/x`, and leave that of `--workdir=~/x`.

  Raises:
    UserError: If one is not one line of UTF-8: neither logs nor the libraries
      that write data could name such a path.
  """
  for argument in argv:
    if re.search(r'[\ud800-\udfff\n]', argument):
      raise errors.UserError(
        f'{argument!a} is not one line of UTF-8; choose another name'
      )
  return [_at_home(argument) for argument in argv]


def _at_home(argument: str) -> str:
  name, equals, value = argument.partition('=')
  # A dot: a value of the config, which is no path of ours.
  if not name.startswith('-') or '.' in name:
    return argument
  return name + equals + os.path.expanduser(value)
