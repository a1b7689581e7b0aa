"""Parameters, and moments of inputs, layer by layer."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from bn_research import norms, trees


def with_layers(
  tree: Any, layers: Mapping[str, Mapping[str, jax.Array]]
) -> Any:
  """Returns the tree with the leaves of `layers`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: layers[trees.name_of(path[:-1])][trees.name_of(path[-1:])],
    tree,
  )


def moments_of(tree: Any) -> dict[str, norms.Moments]:
  """Returns the moments in a tree, by the name of where they are."""
  leaves = jax.tree_util.tree_leaves_with_path(
    tree, is_leaf=lambda node: isinstance(node, norms.Moments)
  )
  return {trees.name_of(path): moments for path, moments in leaves}


def check(
  name: str, kernel: jax.Array, moments: Mapping[str, norms.Moments]
) -> None:
  """Checks that there are moments of the inputs of a layer's kernel.

  Raises:
    ValueError: If there are none, or they are of another size.
  """
  if name not in moments:
    raise ValueError(
      f'the kernel of {name} has no input_moments; there are those of'
      f' {", ".join(moments) or "nothing"}. optax.masked leaves kernels out'
    )
  there, here = moments[name].mean.size, math.prod(kernel.shape[:-1])
  if there != here:
    raise ValueError(
      f'the kernel of {name} multiplies {here} inputs, and its input_moments'
      f' are of {there}; optax.masked leaves kernels out'
    )
