"""The flags of all commands, and every error of the user as a single line.

A command ends with

    if __name__ == '__main__':
      cli.run(main)

The function `main` reads the parsed flags. A mistake of the user is printed as
`error: ...`, with exit status 2. A mistake of this package keeps the traceback.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from bn_research import (
  arguments,
  config_files,
  disk,
  errors,
  interrupt,
  overrides,
)

_BROKEN_PIPE = 141  # The exit status that shells report after a SIGPIPE.

# The command line in the parsed form. ml_collections reads the overrides from
# this list instead of `sys.argv`.
_argv: list[str] = []

# Sections that a flag sets to None, while further flags set keys below.
_cleared: list[str] = []

# A default would be loaded during the import of this module, and a bad override
# would fail in the import.
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
  """Defines the flag --data_dir, for the commands that read data."""
  return flags.DEFINE_string(
    'data_dir', None, "Directory of the datasets; TFDS's own where not given."
  )


@functools.cache
def define_dry_run() -> flags.FlagHolder:
  """Defines the flag --dry_run, for a command that can print its cost."""
  return flags.DEFINE_bool(
    'dry_run', False, 'Print the cost of the run, and train nothing.'
  )


def run(main: Callable[[], int | None]) -> NoReturn:
  """Parses the flags, calls `main`, and exits with the result of `main`.

  Args:
    main: The command, which returns the exit status, or None for 0. If `main`
      raises a `UserError`, the message is printed in a single line.
  """
  # `--help` shows the key flags of the command, and no flags of libraries.
  for flag in flags.FLAGS.flags_by_module_dict()[__name__]:
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  app.run(lambda _: in_one_line(main), flags_parser=_parse)


def config_path() -> str:
  """Returns the text of --config: `path.py` or `path.py:argument`."""
  return config_flags.get_config_filename(flags.FLAGS['config'])


def config_overrides() -> dict[str, Any]:
  """Returns the values of all flags `--config.key=value`, by dotted key."""
  values = config_flags.get_override_values(flags.FLAGS['config'])
  # First, because None empties a section before keys are added to the section.
  return {**dict.fromkeys(_cleared), **values}


def import_jax(before: Callable[[], None] = lambda: None) -> None:
  """Imports JAX and finds the devices, with errors in a single line.

  Environment variables such as JAX_PLATFORMS can make both fail.

  Args:
    before: A function that is called before JAX finds the devices.

  Raises:
    UserError: If JAX raises an error.
  """
  try:
    import jax

    before()
    jax.devices()
    is_eager = jax.config.values['jax_disable_jit']
  except errors.UserError:
    raise
  except Exception as error:
    # Some errors of JAX begin with an empty line, and some have no text.
    first = str(error).strip().partition('\n')[0] or type(error).__name__
    given = [
      f'{name}={value}'
      for name, value in sorted(os.environ.items())
      if name.startswith(('JAX_', 'XLA_'))
    ]
    hint = f'; the environment has {", ".join(given)}' if given else ''
    raise errors.UserError(f'JAX cannot start: {first}{hint}') from error
  if is_eager:
    raise errors.UserError(
      'JAX_DISABLE_JIT is set, and a run is compiled; unset the variable'
    )


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses like absl, with every error of the user in a single line.

  ml_collections reports a bad config with a traceback, and a misspelt key with
  an attribute error of Python. The config is therefore loaded, and the keys are
  checked, before absl parses the flags.
  """
  return in_one_line(lambda: _checked_parse(argv))


def _checked_parse(argv: Sequence[str]) -> list[str]:
  try:
    # Flags in a --flagfile get the same checks as typed flags.
    argv = flags.FLAGS.read_flags_from_files(arguments.tidy(argv))
    path = _typed_config(argv)
    if path is not None:
      argv = _of_parts(config_files.load(path), argv)
      flags.FLAGS['config'].parser = _Parser()
    # In place, because ml_collections holds a reference to this list.
    _argv[:] = argv
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    message = str(error).strip().removeprefix('ERROR:: ')
    raise errors.UserError(message) from error
  if flags.FLAGS['config'].value is not None:
    flags.FLAGS['config'].value.lock()
  if flags.FLAGS['verbosity'].using_default_value:
    # With the default verbosity, `app.run` would show the INFO messages of
    # every library.
    logging.set_verbosity(logging.WARNING)
  # A dry run writes nothing.
  is_dry = 'dry_run' in flags.FLAGS and flags.FLAGS['dry_run'].value
  for name in ('config',) if is_dry else ('config', 'workdir'):
    if flags.FLAGS[name].value in (None, ''):
      raise errors.UserError(f'--{name} is required; --help shows the flags')
  if not is_dry:
    disk.check(str(flags.FLAGS['workdir'].value))
  if len(rest) > 1:
    raise errors.UserError(f'unexpected argument {rest[1]!r}')
  return rest


_OVERRIDE = re.compile(r'(--?(?:no)?config\.)([^=]*)(?:=(.*))?', re.DOTALL)


def _of_parts(config: config_dict.ConfigDict, argv: Sequence[str]) -> list[str]:
  """Returns arguments, with `KEY.name` in place of a part `KEY`."""
  matches = [_OVERRIDE.fullmatch(argument) for argument in argv]
  keys = [match[2] for match in matches if match]
  result = []
  _cleared.clear()
  for argument, match in zip(argv, matches, strict=True):
    key = match[2] if match else ''
    has_keys = any(other.startswith(f'{key}.') for other in keys)
    if match and match[3] == 'None' and has_keys:
      _cleared.append(key)
      continue
    if match and match[3] is not None:
      value = None if match[3] == 'None' else match[3]
      key = overrides.meant(config, match[2], keys, value)
      argument = f'{match[1]}{key}={match[3]}'
    result.append(argument)
  return result


class _Parser(flags.ArgumentParser):
  """Loads a config, and creates the missing sections of the overrides."""

  def parse(self, path: str) -> config_dict.ConfigDict:
    """Returns the config at a path, prepared for the overrides."""
    config = config_files.load(path)
    for key in _cleared:
      overrides.clear(config, key)
    for argument in _argv:
      if match := _OVERRIDE.fullmatch(argument):
        overrides.make_room(config, match[2])
        section, _, name = match[2].rpartition('.')
        parent = overrides.at(config, section)
        if match[3] == 'None':
          overrides.set_none(parent, name)
        elif name not in parent and match[3] in ('nan', 'inf', '-inf'):
          # Python has no literals nan and inf, and without a placeholder of
          # type float the value would become a text.
          parent[name] = config_dict.placeholder(float)
    return config


def _typed_config(argv: Sequence[str]) -> str | None:
  """Returns the value of the last flag --config, or None."""
  path = None
  for i, argument in enumerate(argv):
    if argument in ('--config', '-config') and i + 1 < len(argv):
      path = argv[i + 1]
    elif match := re.match(r'--?config=(.*)', argument):
      path = match[1]
  return path


def in_one_line(call: Callable[[], Any]) -> Any:
  """Returns the result of `call`; a mistake of the user ends the process.

  Args:
    call: A function without arguments.

  Raises:
    SystemExit: With the `exit_status` of a UserError after a mistake of the
      user, 2 if the output cannot be written, 130 after Ctrl-C, and 141 if the
      reader of the output has ended.
  """
  interrupt.raise_an_exception()
  for name in ('stdout', 'stderr'):
    if getattr(sys, name) is None:  # Closed by the shell: `>&-`.
      setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115
  try:
    return call()
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(error.exit_status)
  except KeyboardInterrupt:
    sys.exit(130)
  except BrokenPipeError:
    # The reader of the output, for example `head`, has ended.
    _stop_printing()
    sys.exit(_BROKEN_PIPE)
  except OSError as error:
    # An error of the standard output has no file name. An error with a file
    # name keeps the traceback.
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
  """Discards the remaining output, which Python would write again at exit."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
