"""Optional packages of an engine or of a search, and texts of their options."""

import importlib.util
from collections.abc import Mapping

from bn_research import errors


def require(package: str, extra: str, flag: str) -> None:
  """Checks that an optional package is installed, without an import.

  Args:
    package: The name of the package, as Python imports the package.
    extra: The extra of this project that installs the package.
    flag: The flag that needs the package, for the message.

  Raises:
    UserError: If the package is not installed.
  """
  if importlib.util.find_spec(package) is None:
    raise errors.not_installed(flag, package, extra)


def pairs(flag: str, text: str, example: str) -> Mapping[str, str]:
  """Returns the options in a text such as `'CPU=4,GPU=1'`, by name.

  Args:
    flag: The flag with the text, for the message.
    text: The options.
    example: A right text, for the message.

  Raises:
    UserError: If the text is no list of options, or if a name is there twice.
  """
  result: dict[str, str] = {}
  for part in text.split(',') if text else ():
    name, equals, value = (piece.strip() for piece in part.partition('='))
    if not (name and equals and value):
      raise errors.UserError(
        f'{flag}={text}: {part!r} is no name=value; give a list such as'
        f' {example}'
      )
    if name in result:
      raise errors.UserError(f'{flag}={text} has {name} twice')
    result[name] = value
  return result
