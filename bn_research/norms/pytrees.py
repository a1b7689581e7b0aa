"""Choices of an axis as pytrees: the arrays are leaves, the rest is static.

A number of a choice, for example a momentum or an epsilon, may be a Python
number or an array, also a traced array. With a population the number may also
be a schedule: a function from the number of updates so far, float32 (), to the
present value. Only arrays are leaves. A choice without arrays therefore
compares, hashes, and can be a static argument of `jax.jit`.
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
  """The base class of a frozen dataclass that is a pytree.

  JAX learns about a subclass from `__init_subclass__`, without a registration.

  Attributes:
    numbers: The names of the fields that are numbers. Each number must be in
      [0, inf), unless the subclass overrides `__post_init__`.
  """

  numbers: ClassVar[tuple[str, ...]] = ()

  def __init_subclass__(cls, **options: Any):
    super().__init_subclass__(**options)
    jax.tree_util.register_pytree_with_keys(cls, _flatten, _unflattener(cls))

  def __post_init__(self):
    for name in self.numbers:
      value = getattr(self, name)
      # Layers of Flax build choices in eager code, so the usual case is short.
      if not isinstance(value, float) or not 0 <= value < math.inf:
        checks.number(name, value, checks.is_non_negative)

  @cached_property
  def is_scheduled(self) -> bool:
    """Whether a number is a schedule."""
    return any(map(callable, map(partial(getattr, self), self.numbers)))

  @cached_property
  def is_static(self) -> bool:
    """Whether the choice has no array, and can be a static argument of jit."""
    # Arrays do not hash, at any depth of the fields.
    try:
      hash(self)
    except TypeError:
      return False
    return True

  def at(self, steps: jax.Array) -> Self:
    """Returns this choice with the present value in place of each schedule.

    Args:
      steps: The number of updates so far, float32 ().
    """
    if not self.is_scheduled:
      return self
    numbers = {name: getattr(self, name) for name in self.numbers}
    present = {n: v(steps) for n, v in numbers.items() if callable(v)}
    return dataclasses.replace(self, **present)  # type: ignore[type-var]


def _is_child(value: Any) -> bool:
  # A tuple is a child if each element is a child, like the parts of a
  # combination. A tuple of names must stay static, because JAX has no string
  # leaves. `()` stays static, too.
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
    # JAX also unflattens with placeholders, which the checks of `__post_init__`
    # would refuse.
    node: Any = object.__new__(cls)
    for name, value in (*zip(names, children, strict=True), *static):
      object.__setattr__(node, name, value)
    return node

  return unflatten
