"""Prepares the arguments of a command line for a parser."""

import os
import re
from collections.abc import Sequence

from bn_research import errors


def tidy(argv: Sequence[str]) -> list[str]:
  """Returns arguments with the home directory in place of a tilde.

  A shell replaces the tilde in `--workdir ~/x`, but not in `--workdir=~/x`.

  Args:
    argv: The arguments of a command line.

  Returns:
    The same arguments. In `--name=value`, with no dot in the name, the home
    directory replaces a tilde at the beginning of the value.

  Raises:
    UserError: If an argument is not a single line of UTF-8. Logs, and the
      libraries that write data, cannot name a path with these characters.
  """
  for argument in argv:
    # Python decodes a byte that is not UTF-8 as a surrogate. The message shows
    # the argument in ASCII (`!a`), which is printable and a single line.
    if re.search(r'[\ud800-\udfff\n]', argument):
      raise errors.UserError(
        f'{argument!a} is not one line of UTF-8; choose another name'
      )
  return [_at_home(argument) for argument in argv]


def _at_home(argument: str) -> str:
  """Returns an argument with the home directory in place of a tilde."""
  name, equals, value = argument.partition('=')
  # A flag with a dot in the name sets a config key. The value of a config key
  # is not a path of the commands, and stays as typed.
  if not name.startswith('-') or '.' in name:
    return argument
  return name + equals + os.path.expanduser(value)


def without(argv: Sequence[str], names: Sequence[str]) -> list[str]:
  """Returns arguments without some flags, each with a value.

  Args:
    argv: The arguments: `--name=value`, or `--name` and then the value.
    names: The names of the flags that are left out.
  """
  result = []
  rest = iter(argv)
  for argument in rest:
    name, equals, _ = argument.lstrip('-').partition('=')
    if not argument.startswith('-') or name not in names:
      result.append(argument)
    elif not equals:
      next(rest, None)
  return result
