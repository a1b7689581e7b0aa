"""Averages of the weights, by name, kept in the state of the optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bn_research import ranges


class AverageState(NamedTuple):
  """The state of an average of the weights.

  Attributes:
    average: The average, a tree like the parameters, in float32 or wider.
    weight: The sum of the weights of all updates so far, float32 ().
  """

  average: Any
  weight: jax.Array


def ema(decay: float = 0.999) -> optax.GradientTransformation:
  """A decaying average of the weights after each step.

    average <- average · (1 - rate) + w · rate,    rate = (1 - decay) / s,
    s <- s · decay + (1 - decay),                  s = 0 before the first step

  The initial weights have no weight in the average: the sum of all rates is 1
  (Kingma and Ba, 2015, Section 3). Before the first step, the average is the
  initial weights. The transformation belongs at the end of a chain, because the
  transformation adds the update to the parameters.

  Args:
    decay: The weight of the old average, in [0, 1).

  Returns:
    A transformation that leaves the update unchanged.

  Raises:
    ValueError: If `decay` is out of range.

  Source: Polyak and Juditsky (1992), for the average of iterates; Szegedy et
  al. (2016), Section 8, for the decaying form in evaluation.
  """
  ranges.weight_of_old(decay=decay)

  def init(params: optax.Params) -> AverageState:
    return AverageState(jax.tree.map(_wide, params), jnp.zeros((), jnp.float32))

  def update(
    updates: optax.Updates, state: AverageState, params: Any = None
  ) -> tuple[optax.Updates, AverageState]:
    new = optax.apply_updates(params, updates)
    weight = state.weight * decay + (1 - decay)
    rate = (1 - decay) / weight
    average = jax.tree.map(
      lambda old, leaf: old * (1 - rate) + leaf * rate, state.average, new
    )
    return updates, AverageState(average, weight)

  return optax.GradientTransformation(init, update)


def _wide(leaf: jax.Array) -> jax.Array:
  # A narrow type would lose the small parts that a step adds. The copy keeps
  # the buffer apart from the buffer of the parameter, which a step donates.
  dtype = jnp.promote_types(leaf.dtype, jnp.float32)
  return jnp.array(leaf, dtype, copy=True)


AVERAGES = {'ema': ema}
"""Averages of the weights, by name."""


def find(opt_state: optax.OptState) -> AverageState | None:
  """Returns the average of the weights in the state of an optimizer, if any.

  Args:
    opt_state: The state of the optimizer.
  """
  is_average = lambda node: isinstance(node, AverageState)
  nodes = jax.tree.leaves(opt_state, is_leaf=is_average)
  return next(filter(is_average, nodes), None)
