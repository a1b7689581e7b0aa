"""Finds and replaces the momentum in the state of an optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax


def momenta_of(opt_state: optax.OptState, params: optax.Params) -> list[Any]:
  """Returns the sums of raw gradients in the state of an optimizer.

  The sums are the traces of `optax.trace`. If the state contains any further
  tree like `params`, the result is empty: after Adam, for example, a trace sums
  gradients divided by a second moment, and no raw gradients.

  Args:
    opt_state: The state of the optimizer.
    params: The parameters.

  Returns:
    A list of trees like `params`, possibly empty.
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
  """Returns the optimizer state after a move of the parameters.

  The momenta continue in the new coordinates. Without momenta, trees like
  `params`, for example the moments of Adam, have no exact counterpart in the
  new coordinates. Each NamedTuple with a tree like `params` then restarts,
  including the count of updates, from which Adam computes the debiasing.
  Further counts, for example the count of a schedule, continue.

  Args:
    opt_state: The state of the optimizer.
    params: The parameters in the new coordinates.
    momenta: The result of `momenta_of`, in the new coordinates.
    optimizer: The optimizer of this state.
    is_new: Whether the coordinates are new, bool ().
  """
  holds = _holds_like(params)
  nodes, treedef = jax.tree.flatten(opt_state, is_leaf=holds)
  # With old coordinates, `momenta` are the old traces, and need no condition.
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
  """Returns a test for a NamedTuple with a field like `params`."""

  # Types are not compared: an optimizer may hold a tree in a narrower type.
  def signature(tree: Any) -> Any:
    return jax.tree.structure(tree), [*map(jnp.shape, jax.tree.leaves(tree))]

  wanted = signature(params)
  return lambda node: (
    hasattr(node, '_fields') and any(signature(f) == wanted for f in node)
  )
