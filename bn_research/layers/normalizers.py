"""Checks of the normalization that a layer gets."""

import functools
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from bn_research.norms import EvoNormS0, Example, Normalization, checks
from bn_research.norms.combination import Combination

# The attributes of the protocol `norms.Normalizer`.
_NEEDED = ('init', 'learned', 'apply', 'remembers', 'scales')
_TO_CALL = (
  type,
  types.FunctionType,
  types.BuiltinFunctionType,
  types.MethodType,
  functools.partial,
)


def require(value: Any, name: str = 'normalization') -> None:
  """Checks that a value has the methods of a normalization.

  Args:
    value: The value. Each part of a combination is checked too.
    name: What the value is, for the message.

  Raises:
    TypeError: If a method is missing, or if the value is a class or a function.
  """
  for part in _parts(value):
    lacking = [method for method in _NEEDED if not hasattr(part, method)]
    if lacking or isinstance(part, type):
      where = name if part is value else f'a part of {name}'
      raise TypeError(f'{where} is {_told(part, lacking)}.')


def _told(value: Any, lacking: list[str]) -> str:
  kind = type(value).__name__
  if isinstance(value, _TO_CALL):
    called = getattr(value, '__name__', kind)
    return f'{called}, a {kind}; call it, and give the result'
  if isinstance(value, str):
    return f'{value!r}, a {kind}; give norms.create({value!r})'
  if len(lacking) == len(_NEEDED):
    return (
      f'{value!r}, a {kind}; give a normalization such as norms.batch_norm(), '
      'or norms.none() for no normalization'
    )
  return (
    f'a {kind} without {", ".join(lacking)}; give a class with the methods of '
    'norms.Normalizer'
  )


def require_features(normalizer: Any, num_features: int) -> None:
  """Checks that groups of channels fit a number of features.

  Without the check, an error would come at the first call. A part with a
  population needs no check of the map, because `init` makes this check.

  Args:
    normalizer: A `norms.Normalization`, or a combination.
    num_features: The number of features.

  Raises:
    ValueError: If a number of groups, or the size of a group, does not fit.
  """
  for part in _parts(normalizer):
    for choice in (part, getattr(part, 'scope', None)):
      if isinstance(choice, Example | EvoNormS0):
        checks.divisor(num_features, **_groups(choice))
    if _whitens_features(part):
      initial = functools.partial(part.map.initial, dtype=jnp.float32)
      jax.eval_shape(lambda initial=initial: initial((num_features,)))


def _groups(choice: Any) -> dict[str, Any]:
  given = {n: getattr(choice, n, None) for n in ('num_groups', 'group_size')}
  return {name: value for name, value in given.items() if value is not None}


def _whitens_features(part: Any) -> bool:
  """Returns whether a map without a population takes features together."""
  if not isinstance(part, Normalization) or part.remembers:
    return False
  return part.map.joint and not (
    isinstance(part.scope, Example) and _groups(part.scope)
  )


def _parts(normalizer: Any) -> Iterator[Any]:
  """Yields the normalizers in a combination, or the normalizer itself."""
  if not isinstance(normalizer, Combination):
    yield normalizer
    return
  for part in normalizer.parts:
    yield from _parts(part)
