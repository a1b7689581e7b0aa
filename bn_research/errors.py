"""The exception for mistakes of the user, and short messages for exceptions."""

import functools
import pathlib
import sysconfig
import traceback

_PACKAGE = pathlib.Path(__file__).parent


class UserError(Exception):
  """A mistake of the user: a single line that names the mistake and the fix.

  A command prints the line as `error: ...` and exits with `exit_status`. A
  traceback is only for mistakes in this package.
  """

  exit_status = 2


def not_installed(what: str, package: str, extra: str) -> UserError:
  """Returns the error of an optional package that is missing.

  Args:
    what: What needs the package, such as a flag.
    package: The name of the package.
    extra: The extra of this project that installs the package.
  """
  return UserError(
    f'{what} needs {package}, which is not installed: python -m pip install'
    f" -c requirements.txt -e '.[{extra}]'"
  )


def told(error: BaseException) -> str:
  """Returns an error as a line: place in the code of the user, type, message.

  Args:
    error: An exception with a traceback.

  Returns:
    The line. The place is the innermost line in a file of the user. If the
    traceback contains no file of the user, the line has no place.
  """
  # The text of a SyntaxError ends with a file and a line, which the place below
  # names too.
  message = error.msg if isinstance(error, SyntaxError) else str(error)
  lines = message.splitlines() or ['']
  text = f'{type(error).__name__}: {lines[0]}'.removesuffix(': ')
  where = user_line(error)
  return f'{where}: {text}' if where else text


def user_line(error: BaseException) -> str | None:
  """Returns `file:line` of the innermost line in a file of the user, or None.

  Args:
    error: An exception with a traceback.
  """
  # Python does not run a file with a syntax error, so no frame is in the file.
  if isinstance(error, SyntaxError) and error.filename and error.lineno:
    return f'{_short(error.filename)}:{error.lineno}'
  for frame in reversed(_frames(error)):
    if _is_of_the_user(frame.filename):
      return f'{_short(frame.filename)}:{frame.lineno}'
  return None


def raised_by_us(error: BaseException) -> bool:
  """Whether the innermost frame of an error is in this package.

  Args:
    error: An exception with a traceback.
  """
  frames = _frames(error)
  return bool(frames) and _is_ours(frames[-1].filename)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
  """Returns the frames of an error, without the frame that caught the error."""
  return list(traceback.extract_tb(error.__traceback__))[1:]


def _short(filename: str) -> str:
  """Returns a path: relative for a file below the current directory."""
  path, here = pathlib.Path(filename).absolute(), pathlib.Path.cwd()
  return str(path.relative_to(here) if here in path.parents else path)


def _is_ours(filename: str) -> bool:
  """Whether a file is in this package."""
  return _PACKAGE in pathlib.Path(filename).parents


def _is_of_the_user(filename: str) -> bool:
  """Whether a file exists outside of this package, Python and site packages."""
  path = pathlib.Path(filename)
  # The frames of `exec` and of frozen modules have names like `<string>`,
  # which are not files.
  return (
    path.is_file()
    and not _is_ours(filename)
    and not any(folder in path.parents for folder in _installed())
  )


@functools.cache
def _installed() -> list[pathlib.Path]:
  """Returns the folders of the standard library and of installed packages."""
  kinds = ('stdlib', 'platstdlib', 'purelib', 'platlib')
  return [pathlib.Path(sysconfig.get_path(kind)) for kind in kinds]
