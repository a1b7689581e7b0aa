"""Groups parameters, and moments of inputs, by layer."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from bn_research import norms, trees


def with_layers(
  tree: Any, layers: Mapping[str, Mapping[str, jax.Array]]
) -> Any:
  """Returns a tree of the same structure, with the leaves of `layers`.

  Args:
    tree: A pytree of parameters, gradients or updates.
    layers: The new leaves, in the form of `trees.by_module`.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: layers[trees.name_of(path[:-1])][trees.name_of(path[-1:])],
    tree,
  )


def moments_of(tree: Any) -> dict[str, norms.Moments]:
  """Returns all moments in a tree, by path, for example `dense/0`."""
  leaves = jax.tree_util.tree_leaves_with_path(
    tree, is_leaf=lambda node: isinstance(node, norms.Moments)
  )
  return {trees.name_of(path): moments for path, moments in leaves}


def check(
  name: str, kernel: jax.Array, moments: Mapping[str, norms.Moments]
) -> None:
  """Checks the moments of the inputs of a kernel.

  Args:
    name: The name of the layer.
    kernel: The kernel, (..., in_features, out_features).
    moments: The moments of all layers, by name.

  Raises:
    ValueError: If the layer has no moments, or if the number of features in the
      moments is not the number of inputs of the kernel.
  """
  if name not in moments:
    raise ValueError(
      f'the kernel of {name} has no input_moments; there are those of'
      f' {", ".join(moments) or "nothing"}. optax.masked leaves kernels out'
    )
  # A convolution multiplies patches, so all axes of the kernel except the last
  # belong to the inputs.
  there, here = moments[name].mean.size, math.prod(kernel.shape[:-1])
  if there != here:
    raise ValueError(
      f'the kernel of {name} multiplies {here} inputs, and its input_moments'
      f' are of {there}; optax.masked leaves kernels out, for example those of'
      ' convolutions with feature groups'
    )
