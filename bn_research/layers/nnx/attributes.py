"""Attributes of nnx layers that hold a number, or an array in its place."""

import dataclasses
from typing import Any

from flax import nnx

from bn_research.norms.checks import is_array

_NAMES = frozenset({'momentum', 'epsilon'})


class TakesArrays:
  """A base class of layers whose options may become arrays, and numbers again.

  nnx decides at the first assignment whether an attribute is static, which is a
  part of the graph definition, or data. A number is static and an array is
  data. A later array in the place of a number would be refused. This class
  repeats the decision at every assignment of an option.
  """

  def __setattr__(self, name: str, value: Any) -> None:
    if name in _NAMES and not isinstance(value, dataclasses.Field):
      value = nnx.data(value) if is_array(value) else nnx.static(value)
    super().__setattr__(name, value)
