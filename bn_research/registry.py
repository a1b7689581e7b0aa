"""Creates the parts of a config by name, from this package or from a user.

A part is a section of a config with a `name` and options:

    optimizer: {name: adam, learning_rate: 0.001}

The name is a key of a table of this package, or `module:attribute` for a part
in a file of the user. A table maps names to factories, and the options are
keyword arguments of the factory. An option with the value None is left to the
default of the factory. A text in place of a section is short for a section with
this name.
"""

import contextlib
import difflib
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from bn_research import errors

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_PLAIN = (bool, int, float, str, types.NoneType)


def create(
  where: str, table: Mapping[str, Any], section: Any, /, **given: Any
) -> Any:
  """Calls the factory that a section of a config names.

  Args:
    where: The place of the section, for messages: `'optimizer'`.
    table: Factories by name: functions or classes with keyword arguments.
    section: A dict with `name` and the options of the factory; or the name.
    **given: Keyword arguments from the program, which the config must not set.
      A factory gets only the arguments in the signature of the factory.

  Returns:
    The result of the factory.

  Raises:
    UserError: If the name is unknown, if the factory lacks or needs an option,
      or if the factory refuses a value.
  """
  name, options = split(section)
  return call(where, find(where, table, name), name, options, **given)


def split(section: Any) -> tuple[Any, dict[str, Any]]:
  """Returns the name of a section, and the options that are not None."""
  if not is_section(section):
    return section, {}
  options = {k: v for k, v in section.items() if v is not None}
  return options.pop('name', None), options


def is_section(value: Any) -> bool:
  """Whether a value is a section of a config: a dict or a ConfigDict."""
  return hasattr(value, 'items')


def find(where: str, table: Mapping[str, Any], name: Any) -> Any:
  """Finds a part by name: an entry of a table, or an attribute of a module.

  Args:
    where: The place of the section in the config, for messages.
    table: The parts of this package, by name.
    name: A key of the table, or `module:attribute`.

  Returns:
    The entry of the table, or the attribute.

  Raises:
    UserError: If the entry, the module or the attribute does not exist, or if
      the import of the module raises an error.
  """
  if isinstance(name, str) and ':' in name:
    return _attribute(f'{where}={name!r}', *name.split(':', 1))
  if name not in table:
    known = f'{", ".join(sorted(table))}, and module:attribute for your own'
    if name is None:
      raise errors.UserError(f'{where} has no name; there are {known}')
    raise errors.UserError(
      f'{where}={name!r} is unknown{hint(name, table)}; there are {known}'
    )
  return table[name]


def call(
  where: str,
  factory: Callable[..., Any],
  name: Any,
  options: Mapping[str, Any],
  **given: Any,
) -> Any:
  """Calls a factory with options of a config, checked against its signature.

  Args:
    where: The place of the options in the config, for messages.
    factory: A function or a class with keyword arguments.
    name: The name of the factory, for messages.
    options: Keyword arguments from the config.
    **given: Keyword arguments from the program. The factory gets only the
      arguments in the signature of the factory.

  Returns:
    The result of the factory.

  Raises:
    UserError: If an option is unknown or missing, or if the factory refuses a
      value.
  """
  parameters = parameters_of(where, factory, name)
  _check_options(where, parameters, name, options, given)
  ours = {k: v for k, v in given.items() if takes(parameters, k)}
  with mistakes_in(where):
    return factory(**options, **ours)


def bind(
  where: str,
  function: Callable[..., Any],
  name: Any,
  options: Mapping[str, Any],
) -> Callable[[Any], Any]:
  """Returns a function of one argument, with the options of a config bound.

  Args:
    where: The place of the options in the config, for messages.
    function: A function of one argument and of options.
    name: The name of the function, for messages.
    options: Keyword arguments from the config.

  Returns:
    A function of the first argument.

  Raises:
    UserError: If the function takes no argument, or if an option is unknown or
      missing.
  """
  parameters = list(parameters_of(where, function, name).items())
  if not parameters:
    raise errors.UserError(f'{where}: {name!r} takes no argument')
  _check_options(where, dict(parameters[1:]), name, options, {})
  return functools.partial(function, **options)


def _check_options(
  where: str,
  parameters: Mapping[str, inspect.Parameter],
  name: Any,
  options: Mapping[str, Any],
  given: Mapping[str, Any],
) -> None:
  """Raises a UserError if an option is unknown, missing or of a wrong type."""
  named = {k: p for k, p in parameters.items() if p.kind not in _VARIADIC}
  known = [key for key in named if key not in given]
  for key, value in options.items():
    if key in known:
      _check_type(f'{where}.{key}', value, named[key].annotation)
    elif key in given or not takes(parameters, key):
      raise errors.UserError(
        f'{where}: {name!r} has no option {key!r}{hint(key, known)}; it has'
        f' {", ".join(known) or "none"}'
      )
  for key in known:
    if named[key].default is inspect.Parameter.empty and key not in options:
      raise errors.UserError(f'{where}: {name!r} needs the option {key!r}')


def parameters_of(
  where: str, factory: Any, name: Any
) -> dict[str, inspect.Parameter]:
  """Returns `signature(factory)`, with a UserError in place of other errors."""
  try:
    return signature(factory)
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f'{where}: {name!r} is {factory!r}; give a function or a class of Python'
    ) from error


def signature(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Returns the parameters of a function or of a class, by name.

  Raises:
    TypeError: If `factory` is neither a function nor a class.
    ValueError: If Python does not know the parameters, as for some functions in
      C.
  """
  if not inspect.isclass(factory):
    return dict(inspect.signature(factory).parameters)
  # The metaclass of nnx.Module hides the signature of a class. The parameters
  # are therefore read from `__init__`, without `self`.
  parameters = inspect.signature(factory.__init__).parameters
  return dict(list(parameters.items())[1:])


def takes(parameters: Mapping[str, inspect.Parameter], key: str) -> bool:
  """Returns whether a function with these parameters has an argument `key`."""
  kinds = (parameter.kind for parameter in parameters.values())
  return key in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def check_keys(
  where: str, section: Mapping[str, Any], known: Iterable[str]
) -> None:
  """Raises a UserError if a section has a key outside of the known keys."""
  known = list(known)
  for key, value in section.items():
    if key not in known and value is not None:
      raise errors.UserError(
        f'{where} has no key {key!r}{hint(key, known)}; it has'
        f' {", ".join(known)}'
      )


def hint(name: Any, known: Iterable[str]) -> str:
  """Returns `' (did you mean ...?)'` for a close known name, or empty text."""
  close = difflib.get_close_matches(str(name), list(known), n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''


@contextlib.contextmanager
def mistakes_in(where: str) -> Iterator[None]:
  """Turns an error of a part into a single line with the place in the config.

  A part raises ValueError or TypeError, as libraries do. If code of this
  package raised the error, the config has a mistake. If the error passed
  through a file of the user, the line names the file. Any different error is a
  mistake of this package, and passes unchanged.

  Args:
    where: The place in the config, for messages: `'model.norm'`.

  Raises:
    UserError: For a mistake in the config or in a file of the user.
  """
  try:
    yield
  except errors.UserError:
    raise
  # SystemExit, because a call of `sys.exit` in a file of the user would end the
  # command without a message.
  except (Exception, SystemExit) as error:
    if errors.user_line(error):
      raise errors.UserError(f'{where}: {errors.told(error)}') from error
    if isinstance(error, ValueError | TypeError) and errors.raised_by_us(error):
      message = str(error).partition('\n')[0]
      raise errors.UserError(f'{where}: {message}') from error
    raise


def _attribute(where: str, module_name: str, attribute: str) -> Any:
  try:
    found: Any = importlib.import_module(module_name)
  except (Exception, SystemExit) as error:
    raise errors.UserError(f'{where}: {errors.told(error)}') from error
  # A built-in module, for example `sys`, has no file.
  file = getattr(found, '__file__', module_name)
  for part in attribute.split('.'):
    if not hasattr(found, part):
      raise errors.UserError(
        f'{where}: {file} has no {part!r}{hint(part, dir(found))}'
      )
    found = getattr(found, part)
  return found


def _check_type(where: str, value: Any, annotation: Any) -> None:
  """Raises a UserError if a value has no type of the annotation."""
  if isinstance(annotation, types.UnionType) or (
    typing.get_origin(annotation) is typing.Union
  ):
    kinds = typing.get_args(annotation)
  else:
    kinds = (annotation,)
  # Only the factory can check an annotation with Callable or Sequence[int]. If
  # the annotation also contains a number, True is still a mistake.
  is_number = float in kinds or int in kinds
  if is_number and isinstance(value, bool) and bool not in kinds:
    raise errors.UserError(f'{where}={value!r} is not a number')
  if not all(kind in _PLAIN for kind in kinds):
    return
  # `type` instead of `isinstance`: True is an instance of int for Python, and a
  # mistake for a number of steps.
  right = type(value) in kinds or (type(value) is int and float in kinds)
  if not right:
    names = ' or '.join(k.__name__ for k in kinds if k is not types.NoneType)
    raise errors.UserError(f'{where}={value!r} is not of type {names}')
