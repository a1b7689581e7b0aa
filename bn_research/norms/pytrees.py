"""Choices of an axis as pytrees: arrays are leaves, all else is static.

A number of a choice, such as a momentum or an epsilon, may be a Python number,
an array (a traced array too) or, where there is a count of updates, a schedule:
a function of that count. Only arrays are leaves, so that a choice without
arrays compares, hashes and is a static argument of `jax.jit`.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, ClassVar, Self, TypeAlias

import jax

from bn_research.norms import checks
from bn_research.norms.checks import is_array

Number: TypeAlias = float | jax.Array
Schedule: TypeAlias = Number | Callable[[jax.Array], jax.Array]


class Node:
  """A frozen dataclass that is a pytree; subclasses register themselves.

  Attributes:
    numbers: The fields that are numbers: each must be in [0, inf), unless the
      subclass overrides `__post_init__`.
  """

  numbers: ClassVar[tuple[str, ...]] = ()

  def __init_subclass__(cls, **options: Any):
    super().__init_subclass__(**options)
    jax.tree_util.register_pytree_with_keys(cls, _flatten, _unflattener(cls))

  def __post_init__(self):
    for name in self.numbers:
      value = getattr(self, name)
      if not isinstance(value, float) or not 0 <= value < math.inf:
        checks.number(name, value, checks.is_non_negative)

  @cached_property
  def is_scheduled(self) -> bool:
    """Whether a number is a function of the count of updates."""
    return any(map(callable, map(partial(getattr, self), self.numbers)))

  @cached_property
  def is_static(self) -> bool:
    """Whether there is no array, so that this can be a static argument."""
    try:
      hash(self)
    except TypeError:
      return False
    return True

  def at(self, steps: jax.Array) -> Self:
    """Returns this choice with each schedule replaced by its present value.

    Args:
      steps: Updates made so far, ().
    """
    if not self.is_scheduled:
      return self
    numbers = {name: getattr(self, name) for name in self.numbers}
    present = {n: v(steps) for n, v in numbers.items() if callable(v)}
    return dataclasses.replace(self, **present)  # type: ignore[type-var]


def _is_child(value: Any) -> bool:
  if isinstance(value, tuple):
    return bool(value) and all(map(_is_child, value))
  return isinstance(value, Node) or is_array(value)


def _flatten(node: Any):
  fields = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
  children = {n: v for n, v in fields.items() if _is_child(v)}
  keyed = [(jax.tree_util.GetAttrKey(n), v) for n, v in children.items()]
  static = tuple((n, v) for n, v in fields.items() if n not in children)
  return keyed, (tuple(children), static)


def _unflattener(cls: type) -> Callable[..., Any]:
  def unflatten(auxiliary, children):
    names, static = auxiliary
    # JAX unflattens with placeholders too, which no check would accept.
    node: Any = object.__new__(cls)
    for name, value in (*zip(names, children, strict=True), *static):
      object.__setattr__(node, name, value)
    return node

  return unflatten
