"""Building what a config names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bn_research import errors


def create(
  kind: str,
  factories: Mapping[str, Any],
  options: Mapping[str, Any],
  **given: Any,
) -> Any:
  """Calls the factory that `options['name']` names.

  Args:
    kind: What is built, for messages: `'optimizer'`.
    factories: By name, functions or classes that take keyword arguments.
    options: `name`, and keyword arguments for the factory; those that are None
      are left to the factory's defaults.
    **given: Keyword arguments that the config does not hold.

  Returns:
    What the factory returns.

  Raises:
    UserError: If the name is unknown, or the factory has no such option.
  """
  options = {k: v for k, v in options.items() if v is not None}
  name = options.pop('name', None)
  if name not in factories:
    raise errors.UserError(
      f'unknown {kind} {name!r}; there are {", ".join(sorted(factories))}'
    )
  known = [key for key in _parameters(factories[name]) if key not in given]
  for key in options:
    if key not in known:
      raise errors.UserError(
        f'{kind} {name!r} has no option {key!r}; it has {", ".join(known)}'
      )
  return factories[name](**options, **given)


def _parameters(factory: Callable[..., Any]) -> list[str]:
  if not inspect.isclass(factory):
    return list(inspect.signature(factory).parameters)
  # The metaclass of nnx.Module hides the signature of its classes.
  return list(inspect.signature(factory.__init__).parameters)[1:]
