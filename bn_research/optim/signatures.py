"""Signatures of factories, with the options that every part of a kind has."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from bn_research import errors, registry


def joined(
  own: Mapping[str, inspect.Parameter],
  more: Callable[..., Any],
  hidden: Collection[str] = (),
) -> inspect.Signature:
  """Returns the signature of a factory with the options of a second function.

  Args:
    own: The parameters of the factory.
    more: The function with the further options, which are the keyword-only
      parameters. If the factory has an option of the same name, the option
      belongs to the factory.
    hidden: Arguments of the factory that a config must not set.
  """
  found = {k: p for k, p in own.items() if k not in hidden}
  for key, parameter in inspect.signature(more).parameters.items():
    if parameter.kind is parameter.KEYWORD_ONLY:
      found.setdefault(key, parameter)
  named = [
    parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for parameter in found.values()
    if parameter.kind
    not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
  ]
  # Python wants `**options` at the end.
  rest = [p for p in found.values() if p.kind is p.VAR_KEYWORD]
  return inspect.Signature(named + rest)


def popped(
  options: dict[str, Any],
  own: Mapping[str, inspect.Parameter],
  more: Callable[..., Any],
) -> dict[str, Any]:
  """Removes the options of `more` from all options, and returns them.

  Args:
    options: The options of a signature made by `joined`, changed in place.
    own: As for `joined`.
    more: As for `joined`.
  """
  parameters = inspect.signature(more).parameters.values()
  names = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
  return {k: options.pop(k) for k in names - own.keys() if k in options}


def require_rate(where: str, factory: Callable[..., Any], name: Any) -> None:
  """Raises a UserError if a part has no argument `learning_rate`."""
  # `registry.create` drops an argument that a part of the user lacks, in
  # silence. Every config has a learning rate, and a run must use the number.
  parameters = registry.parameters_of(where, factory, name)
  if not registry.takes(parameters, 'learning_rate'):
    raise errors.UserError(
      f'{where}: {name!r} has no argument learning_rate; add one, a number or a'
      ' schedule of optax'
    )
