"""Mistakes of the user: one exception, and what is told of other exceptions."""

import functools
import pathlib
import sysconfig
import traceback

_PACKAGE = pathlib.Path(__file__).parent


class UserError(Exception):
  """A mistake of the user's: one line that names what is wrong and the fix.

  Commands print it as `error: ...` and exit with status 2; a traceback is for
  our own mistakes.
  """


def told(error: BaseException) -> str:
  """Returns an error in one line: its place in the user's code, type, message.

  Args:
    error: An error that was raised. The place is the innermost line of a file
      of the user; it is left out where the error met no such file.
  """
  message = error.msg if isinstance(error, SyntaxError) else str(error)
  lines = message.splitlines() or ['']
  text = f'{type(error).__name__}: {lines[0]}'.removesuffix(': ')
  where = user_line(error)
  return f'{where}: {text}' if where else text


def user_line(error: BaseException) -> str | None:
  """Returns `file:line` of the innermost line of the user, or None."""
  if isinstance(error, SyntaxError) and error.filename and error.lineno:
    return f'{_short(error.filename)}:{error.lineno}'
  for frame in reversed(_frames(error)):
    if _is_of_the_user(frame.filename):
      return f'{_short(frame.filename)}:{frame.lineno}'
  return None


def raised_by_us(error: BaseException) -> bool:
  """Whether code of this package raised the error, and no other library."""
  frames = _frames(error)
  return bool(frames) and _is_ours(frames[-1].filename)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
  """Returns the frames below the one that caught the error."""
  return list(traceback.extract_tb(error.__traceback__))[1:]


def _short(filename: str) -> str:
  """Returns a path from here, for a file below the current directory."""
  path, here = pathlib.Path(filename).absolute(), pathlib.Path.cwd()
  return str(path.relative_to(here) if here in path.parents else path)


def _is_ours(filename: str) -> bool:
  return _PACKAGE in pathlib.Path(filename).parents


def _is_of_the_user(filename: str) -> bool:
  path = pathlib.Path(filename)
  return (
    path.is_file()
    and not _is_ours(filename)
    and not any(folder in path.parents for folder in _installed())
  )


@functools.cache
def _installed() -> list[pathlib.Path]:
  """The folders of Python itself and of installed packages."""
  kinds = ('stdlib', 'platstdlib', 'purelib', 'platlib')
  return [pathlib.Path(sysconfig.get_path(kind)) for kind in kinds]
