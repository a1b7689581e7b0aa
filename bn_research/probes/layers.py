"""Finds the layers of a network, in the order of use."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bn_research import trees
from bn_research.probes.observation import Observation


class Layer(NamedTuple):
  """A module with a kernel, and the modules up to the next kernel.

  Attributes:
    name: The path of the module with the kernel, for example `'dense/0'`.
    weights: Indices of the leaves of this module, in the tree of parameters.
    others: Indices of the leaves of modules without a kernel between this
      kernel and the next kernel, for example the scale and the bias of a norm.
  """

  name: str
  weights: tuple[int, ...]
  others: tuple[int, ...]


def in_order(observation: Observation) -> list[Layer]:
  """Returns the layers of the network of an observation, in the order of use.

  The order is the order of the first use of the parameters in the program of
  the loss. In the program, a `scan` or a `remat` is a single equation, and the
  order of the modules inside is the order of the names.

  Args:
    observation: The network and a mini-batch.
  """
  paths = jax.tree_util.tree_leaves_with_path(observation.params)
  modules: dict[str, list[int]] = {}
  for number, use in _uses(observation):
    del use
    modules.setdefault(trees.name_of(paths[number][0][:-1]), []).append(number)
  layers: list[Layer] = []
  before: tuple[int, ...] = ()
  for name, numbers in modules.items():
    if any(paths[number][1].ndim > 1 for number in numbers):
      layers.append(Layer(name, tuple(numbers), ()))
    elif layers:
      layers[-1] = layers[-1]._replace(others=(*layers[-1].others, *numbers))
    else:
      before = (*before, *numbers)
  if layers and before:
    # A norm of the inputs comes before all kernels, and counts as a part of the
    # first layer.
    layers[0] = layers[0]._replace(others=(*before, *layers[0].others))
  return layers


def _uses(observation: Observation) -> list[tuple[int, int]]:
  """Finds the first use of each leaf of the parameters.

  Returns:
    The index of each leaf, with the index of the first equation that uses the
    leaf, sorted by the equation. A leaf without a use comes last.
  """
  jaxpr = jax.make_jaxpr(observation.loss)(observation.params).jaxpr
  first = {id(var): len(jaxpr.eqns) for var in jaxpr.invars}
  # The loop runs backwards, and the first use overwrites later uses.
  for place, equation in reversed(list(enumerate(jaxpr.eqns))):
    first.update({id(v): place for v in equation.invars if id(v) in first})
  uses = [(k, first[id(var)]) for k, var in enumerate(jaxpr.invars)]
  return sorted(uses, key=lambda use: use[1])


def replaced(tree: Any, leaves: Mapping[int, Any]) -> Any:
  """Returns a tree with new leaves.

  Args:
    tree: A pytree.
    leaves: The new leaves, by the index of the old leaf in `tree`.
  """
  all_leaves, structure = jax.tree.flatten(tree)
  return jax.tree.unflatten(
    structure, [leaves.get(k, leaf) for k, leaf in enumerate(all_leaves)]
  )


def chosen(tree: Any, numbers: Sequence[int]) -> dict[int, jax.Array]:
  """Returns leaves of a tree, by index.

  Args:
    tree: A pytree of arrays.
    numbers: The indices of the leaves.
  """
  leaves = jax.tree.leaves(tree)
  return {number: leaves[number] for number in numbers}
