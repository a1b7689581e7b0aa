"""Which parameters weight decay shrinks."""

from collections.abc import Callable
from typing import Any

import jax

from bn_research import trees

# Flax and this package give these names to biases, to the scales of norms, and
# to the further parameters of norms. A name also finds the parameters of layers
# that share stacked arrays, with one dimension more.
_NAMES = ('bias', 'scale', 'learned')


def kernels(params: Any) -> Any:
  """Returns whether each array is a kernel, as a tree like the parameters.

  A kernel has two or more dimensions, and no part of the path is `bias`,
  `scale` or `learned`. The parameters of norms, biases, and scalars of an
  activation function are thus no kernels.

  Args:
    params: The parameters.
  """

  def is_kernel(path: Any, leaf: jax.Array) -> bool:
    parts = trees.name_of(path).split('/')
    return leaf.ndim >= 2 and not any(name in parts for name in _NAMES)

  return jax.tree_util.tree_map_with_path(is_kernel, params)


MASKS: dict[str, Callable[[Any], Any] | None] = {
  'kernels': kernels,
  'all': None,
}
"""Functions from parameters to a tree of bool, by name; None for all."""


def mask_of(name: str) -> Callable[[Any], Any] | None:
  """Returns a mask by name.

  Raises:
    ValueError: If the name is unknown.
  """
  if name not in MASKS:
    raise ValueError(f'decay_mask={name!r}; choose {" or ".join(MASKS)}')
  return MASKS[name]
