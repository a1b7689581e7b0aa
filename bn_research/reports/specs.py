"""From the dicts of a config to the objects of a report."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bn_research import errors

T = TypeVar('T')


def build(kind: str, factory: Callable[..., T], fields: Mapping[str, Any]) -> T:
  """Calls `factory` with the fields of a dict.

  Args:
    kind: What is built, for messages.
    factory: What builds it.
    fields: Its keyword arguments.

  Raises:
    UserError: If a field is missing or unknown.
  """
  try:
    inspect.signature(factory).bind(**fields)
  except TypeError as error:
    raise errors.UserError(
      f'report(): {kind} with {", ".join(fields)}: {error}'
    ) from error
  return factory(**fields)


def create(
  kind: str,
  factories: Mapping[str, Callable[..., Any]],
  spec: Mapping[str, Any],
  **given: Any,
) -> Any:
  """Calls the factory that the field `name` names with the other fields.

  Args:
    kind: What is built, for messages.
    factories: The factories by name.
    spec: `name`, and keyword arguments of the factory.
    **given: Keyword arguments that a config does not hold.

  Raises:
    UserError: If the name is unknown, or a field missing or unknown.
  """
  fields = dict(spec)
  name = fields.pop('name', None)
  if name not in factories:
    raise errors.UserError(
      f'report(): unknown {kind} {name!r}; there are'
      f' {", ".join(sorted(factories))}'
    )
  return build(f'{kind} {name!r}', factories[name], {**fields, **given})
