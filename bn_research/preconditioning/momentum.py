"""The momentum of raw gradients in the state of an optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax


def momenta_of(opt_state: optax.OptState, params: optax.Params) -> list[Any]:
  """Returns the sums of raw gradients that an optimizer holds.

  They are those of `optax.trace`, where nothing else like `params` is held: a
  sum of what Adam divided by its second moment is not one of gradients.

  Args:
    opt_state: The state.
    params: The parameters.

  Returns:
    Trees like `params`; none where something else is held.
  """
  holds = _holds_like(params)
  nodes = jax.tree.leaves(opt_state, is_leaf=holds)
  held = [node for node in nodes if holds(node)]
  if not all(isinstance(node, optax.TraceState) for node in held):
    return []
  return [node.trace for node in held]


def in_new_coordinates(
  opt_state: optax.OptState,
  params: optax.Params,
  momenta: Sequence[Any],
  optimizer: optax.GradientTransformation,
  is_new: jax.Array,
) -> optax.OptState:
  """Returns the state after the parameters moved to new coordinates.

  What `momenta_of` gave goes on in the new coordinates. Anything else like
  `params`, such as Adam's moments, has no exact counterpart there: it restarts,
  together with the count by which Adam knows how much it has seen. Counts
  beside nothing like `params`, such as a schedule's, go on.

  Args:
    opt_state: The state.
    params: The parameters.
    momenta: What `momenta_of` gave, in the new coordinates.
    optimizer: Whose state it is.
    is_new: () bool, whether the coordinates are new.
  """
  holds = _holds_like(params)
  nodes, treedef = jax.tree.flatten(opt_state, is_leaf=holds)
  if momenta:
    carried = iter(momenta)
    nodes = [
      node._replace(trace=next(carried)) if holds(node) else node
      for node in nodes
    ]
    return jax.tree.unflatten(treedef, nodes)

  def restarted() -> optax.OptState:
    fresh = jax.tree.leaves(optimizer.init(params), is_leaf=holds)
    pairs = zip(nodes, fresh, strict=True)
    restart = [new if holds(new) else old for old, new in pairs]
    return jax.tree.unflatten(treedef, restart)

  return lax.cond(is_new, restarted, lambda: opt_state)


def _holds_like(params: optax.Params) -> Callable[[Any], bool]:
  """Whether a node of a state is a NamedTuple with a field like `params`."""

  def signature(tree: Any) -> Any:
    return jax.tree.structure(tree), [*map(jnp.shape, jax.tree.leaves(tree))]

  wanted = signature(params)
  return lambda node: (
    hasattr(node, '_fields') and any(signature(f) == wanted for f in node)
  )
