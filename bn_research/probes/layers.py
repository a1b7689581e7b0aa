"""The layers of a network, in the order in which the network uses them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bn_research import trees
from bn_research.probes.observation import Observation


class Layer(NamedTuple):
  """Parameters with a kernel, and what follows up to the next kernel.

  Attributes:
    name: The path of the module that holds the kernel, such as `'dense/0'`.
    weights: Numbers of the leaves of this module, in the tree of parameters.
    others: Numbers of the leaves of modules without a kernel, such as the scale
      and the bias of a norm, which are used after this kernel and before the
      next.
  """

  name: str
  weights: tuple[int, ...]
  others: tuple[int, ...]


def in_order(observation: Observation) -> list[Layer]:
  """Returns the layers of the network of an observation.

  The program of the loss tells which parameters are used first. Modules within
  one call of a loop (`scan`, `remat`) are used at once; their order is that of
  their names.

  Args:
    observation: The network and a batch.
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
    # A norm of the inputs precedes all kernels; it moves with the first layer.
    layers[0] = layers[0]._replace(others=(*before, *layers[0].others))
  return layers


def _uses(observation: Observation) -> list[tuple[int, int]]:
  """Returns the number of each leaf and of its first use, in order of use."""
  jaxpr = jax.make_jaxpr(observation.loss)(observation.params).jaxpr
  first = {id(var): len(jaxpr.eqns) for var in jaxpr.invars}
  for place, equation in reversed(list(enumerate(jaxpr.eqns))):
    first.update({id(v): place for v in equation.invars if id(v) in first})
  uses = [(k, first[id(var)]) for k, var in enumerate(jaxpr.invars)]
  return sorted(uses, key=lambda use: use[1])


def replaced(tree: Any, leaves: Mapping[int, Any]) -> Any:
  """Returns a tree with other leaves in the places of some numbers."""
  all_leaves, structure = jax.tree.flatten(tree)
  return jax.tree.unflatten(
    structure, [leaves.get(k, leaf) for k, leaf in enumerate(all_leaves)]
  )


def chosen(tree: Any, numbers: Sequence[int]) -> dict[int, jax.Array]:
  """Returns the leaves of some numbers, by number."""
  leaves = jax.tree.leaves(tree)
  return {number: leaves[number] for number in numbers}
