"""Config files of experiments: Python files of the user, run once a process."""

import copy
import functools
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from ml_collections import config_dict

from bn_research import errors


def module_of(path: str) -> types.ModuleType:
  """Loads the file of an experiment as a module.

  Args:
    path: `path.py` or `path.py:argument`.

  Returns:
    The module, with `get_config` and perhaps `sweep` and `report`.

  Raises:
    UserError: If the file does not exist, or if the file raises an error.
  """
  return _module(path.partition(':')[0])


def call(path: str, name: str) -> Any:
  """Calls a function of a config file, such as `sweep`.

  Args:
    path: `path.py` or `path.py:argument`. A function with the parameter `arg`
      gets the argument.
    name: The name of the function.

  Returns:
    The result; a list of the items if the function is a generator.

  Raises:
    UserError: If the file has no such function, or the function raises an
      error.
  """
  file, *argument = path.split(':', 1)
  module = module_of(path)
  if not hasattr(module, name):
    raise errors.UserError(f'{path} has no function {name}')

  def called() -> Any:
    function = getattr(module, name)
    takes_argument = 'arg' in inspect.signature(function).parameters
    result = function(*argument) if takes_argument else function()
    # The body of a generator runs, and may raise, only when items are taken.
    return list(result) if isinstance(result, types.GeneratorType) else result

  return _of_the_user(file, called)


def load(path: str) -> config_dict.ConfigDict:
  """Returns a copy of `get_config(argument)` of the experiment."""
  # Overrides change the copy, and the cache keeps the original.
  return copy.deepcopy(_config(path))


@functools.cache
def _config(path: str) -> config_dict.ConfigDict:
  name, *argument = path.split(':', 1)
  module = module_of(path)
  if not hasattr(module, 'get_config'):
    raise errors.UserError(f'{name} has no function get_config')
  config = _of_the_user(name, module.get_config, *argument)
  if not isinstance(config, config_dict.ConfigDict):
    raise errors.UserError(f'{name}: get_config must return a ConfigDict')
  return config


def _of_the_user(name: str, call: Callable[..., Any], *args: Any) -> Any:
  """Calls code of a config file, and turns each error into a UserError."""
  try:
    return call(*args)
  except errors.UserError as error:
    where = errors.user_line(error)
    raise errors.UserError(f'{where or name}: {error}') from error
  except (Exception, SystemExit) as error:
    told = errors.told(error)
    is_placed = errors.user_line(error)
    raise errors.UserError(told if is_placed else f'{name}: {told}') from error


@functools.cache
def _module(name: str) -> types.ModuleType:
  """Runs a config file; a further call returns the same module."""
  if not os.path.isfile(name):
    raise errors.UserError(
      f'no config file {name}; give --config=path.py or path.py:argument'
    )
  make_importable(os.path.dirname(os.path.abspath(name)))
  spec = importlib.util.spec_from_file_location('experiment', name)
  if spec is None or spec.loader is None:
    raise errors.UserError(f'{name} is not a Python file (.py)')
  module = importlib.util.module_from_spec(spec)
  # Dataclasses look up the module of a class in `sys.modules`.
  sys.modules['experiment'] = module
  _of_the_user(name, spec.loader.exec_module, module)
  return module


def make_importable(folder: str) -> None:
  """Lets `module:attribute` name a module beside a config file."""
  if folder not in sys.path:
    # At the end, because a file `jax.py` of the user must not hide the library.
    sys.path.append(folder)
