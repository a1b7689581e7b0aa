"""Flags that the commands share, and every user's error as one line.

A command ends with

    if __name__ == '__main__':
      cli.run(main)

where `main` reads the parsed flags. A mistake of the user's is printed as
`error: ...` and ends with status 2; our own mistakes keep their traceback.
"""

import copy
import functools
import importlib.util
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from bn_research import arguments, errors, overrides

_BROKEN_PIPE = 141  # a shell's code of a command that SIGPIPE ended

# The command line as it is parsed, from which ml_collections reads overrides.
_argv: list[str] = []

# No default: with one, a bad override would fail while this module is imported.
CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'File of the experiment: path.py or path.py:argument.',
  lock_config=False,
  accept_new_attributes=True,
  sys_argv=_argv,
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the results.')


@functools.cache
def define_data_dir() -> flags.FlagHolder:
  """Defines --data_dir, for the commands that read data."""
  return flags.DEFINE_string(
    'data_dir', None, "Directory of the datasets; TFDS's own where not given."
  )


def run(main: Callable[[], int | None]) -> NoReturn:
  """Parses the flags, calls `main` and exits with what it returns.

  Args:
    main: The command. A `UserError` that it raises is printed in one line.
  """
  for flag in flags.FLAGS.flags_by_module_dict()[__name__]:
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  app.run(lambda _: in_one_line(main), flags_parser=_parse)


def config_path() -> str:
  """Returns --config as it was typed: `path.py` or `path.py:argument`."""
  return config_flags.get_config_filename(flags.FLAGS['config'])


def config_overrides() -> dict[str, Any]:
  """Returns what `--config.key=value` changed, by dotted key."""
  return dict(config_flags.get_override_values(flags.FLAGS['config']))


def config_module(path: str) -> types.ModuleType:
  """Loads the file of an experiment, for its `sweep()` and `report()`.

  Args:
    path: `path.py` or `path.py:argument`.

  Raises:
    UserError: If there is no such file, or it raises.
  """
  return _module(path.partition(':')[0])


@functools.cache
def _module(name: str) -> types.ModuleType:
  """Runs a file once in a process."""
  if not os.path.isfile(name):
    raise errors.UserError(
      f'no config file {name}; give --config=path.py or path.py:argument'
    )
  make_importable(os.path.dirname(os.path.abspath(name)))
  spec = importlib.util.spec_from_file_location('experiment', name)
  if spec is None or spec.loader is None:
    raise errors.UserError(f'{name} is not a Python file (.py)')
  module = importlib.util.module_from_spec(spec)
  sys.modules['experiment'] = module  # where dataclasses look for it
  _of_the_user(name, spec.loader.exec_module, module)
  return module


def make_importable(folder: str) -> None:
  """Lets `module:attribute` name a module beside a config file."""
  if folder not in sys.path:
    # Last: a file of the user called `jax.py` must not hide the library.
    sys.path.append(folder)


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses like absl, with every error of the user's in one line.

  ml_collections tells a bad config by tracebacks and a misspelt key by Python's
  attribute errors; so the config is loaded and the keys are looked up first.
  """
  return in_one_line(lambda: _checked_parse(argv))


def _checked_parse(argv: Sequence[str]) -> list[str]:
  try:
    # What a --flagfile holds is as if it were typed.
    argv = flags.FLAGS.read_flags_from_files(arguments.tidy(argv))
    path = _typed_config(argv)
    if path is not None:
      argv = _of_parts(_load(path), argv)
      flags.FLAGS['config'].parser = _Parser()
    _argv[:] = argv
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    message = str(error).strip().removeprefix('ERROR:: ')
    raise errors.UserError(message) from error
  if flags.FLAGS['config'].value is not None:
    flags.FLAGS['config'].value.lock()
  if flags.FLAGS['verbosity'].using_default_value:
    # Else `app.run` turns on the chatter of every library.
    logging.set_verbosity(logging.WARNING)
  for name in ('config', 'workdir'):
    if flags.FLAGS[name].value in (None, ''):
      raise errors.UserError(f'--{name} is required; --help shows the flags')
  if len(rest) > 1:
    raise errors.UserError(f'unexpected argument {rest[1]!r}')
  return rest


_OVERRIDE = re.compile(r'(--?(?:no)?config\.)([^=]+)(?:=(.*))?', re.DOTALL)


def _of_parts(config: config_dict.ConfigDict, argv: Sequence[str]) -> list[str]:
  """Returns arguments, with the name of a part where the part itself is set."""
  matches = [_OVERRIDE.fullmatch(argument) for argument in argv]
  keys = [match[2] for match in matches if match]
  result = []
  for argument, match in zip(argv, matches, strict=True):
    if match and match[3] is not None:
      value = None if match[3] == 'None' else match[3]
      key = overrides.meant(config, match[2], keys, value)
      argument = f'{match[1]}{key}={match[3]}'
    result.append(argument)
  return result


class _Parser(flags.ArgumentParser):
  """Loads a config, and makes room in it for the overrides to come."""

  def parse(self, path: str) -> config_dict.ConfigDict:
    """Returns the config of a path."""
    config = _load(path)
    for argument in _argv:
      if match := _OVERRIDE.fullmatch(argument):
        overrides.make_room(config, match[2])
        section, _, name = match[2].rpartition('.')
        parent = overrides.at(config, section)
        if match[3] == 'None':
          overrides.set_none(parent, name)
        elif name not in parent and match[3] in ('nan', 'inf', '-inf'):
          # Else it would be a text, for Python has no such literals.
          parent[name] = config_dict.placeholder(float)
    return config


def _typed_config(argv: Sequence[str]) -> str | None:
  """Returns what follows the last `--config=` or `--config `."""
  path = None
  for i, argument in enumerate(argv):
    if argument in ('--config', '-config') and i + 1 < len(argv):
      path = argv[i + 1]
    elif match := re.match(r'--?config=(.*)', argument):
      path = match[1]
  return path


def _load(path: str) -> config_dict.ConfigDict:
  """Returns a copy of `get_config(argument)` of the experiment."""
  return copy.deepcopy(_config(path))


@functools.cache
def _config(path: str) -> config_dict.ConfigDict:
  name, *argument = path.split(':', 1)
  module = config_module(path)
  if not hasattr(module, 'get_config'):
    raise errors.UserError(f'{name} has no function get_config')
  config = _of_the_user(name, module.get_config, *argument)
  if not isinstance(config, config_dict.ConfigDict):
    raise errors.UserError(f'{name}: get_config must return a ConfigDict')
  return config


def _of_the_user(name: str, call: Callable[..., Any], *args: Any) -> Any:
  """Calls code of a config file, with the errors of the user in one line."""
  try:
    return call(*args)
  except errors.UserError as error:
    where = errors.user_line(error)
    raise errors.UserError(f'{where or name}: {error}') from error
  except Exception as error:
    told = errors.told(error)
    is_placed = errors.user_line(error)
    raise errors.UserError(told if is_placed else f'{name}: {told}') from error


def in_one_line(call: Callable[[], Any]) -> Any:
  """Returns what `call` returns; a mistake of the user ends the process."""
  try:
    return call()
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    sys.exit(130)
  except BrokenPipeError:
    # Whoever read the output, such as `head`, has gone.
    _stop_printing()
    sys.exit(_BROKEN_PIPE)
  except OSError as error:
    if error.filename is not None:
      raise
    _stop_printing()
    print(
      f'error: cannot write: {error.strerror}; mend that and run the same'
      ' command again',
      file=sys.stderr,
    )
    sys.exit(2)


def _stop_printing() -> None:
  """Drops what is left to print: Python would try again as it exits."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
