"""Moves layers to new coordinates between the gradient and the update."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx

from bn_research import hooks, norms
from bn_research.preconditioning import momentum, recording


@dataclasses.dataclass(frozen=True)
class Refresh:
  """The hook of layers that have coordinates of their own.

  `WhitenedDense` is such a layer. Its attribute `observe` and its method
  `refresh` are what this hook needs; another layer that has both may bring the
  same hook along.

  Every layer learns from each step, and moves to new coordinates where it is
  time to. The function of the model stays the same, and so does the meaning of
  gradients and momentum. If the optimizer has more than a momentum, as Adam
  has, then its averages restart: see `momentum`.
  """

  def listen(self, model: nnx.Module) -> dict[str, norms.Moments]:
    """Lets the layers note the moments of their inputs, by name."""
    classes = tuple({type(layer) for layer in _layers(model).values()})
    return recording.record_inputs(model, of=classes)

  def before_update(
    self,
    descent: hooks.Descent,
    noted: Mapping[str, norms.Moments],
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
  ) -> hooks.Descent:
    """Returns the same descent in the new coordinates.

    Args:
      descent: Between the gradient and the update.
      noted: The moments of the inputs, of the forward pass of the gradient.
      graphdef: The graph of the model.
      optimizer: The optimizer.
    """
    momenta = momentum.momenta_of(descent.opt_state, descent.params)
    model, *duals = (
      nnx.merge(graphdef, tree, descent.rest, copy=True)
      for tree in (descent.params, descent.grads, *momenta)
    )
    covectors = [_layers(dual) for dual in duals]
    is_new = jnp.zeros((), bool)
    for name, layer in _layers(model).items():
      is_new |= layer.refresh(noted[name], [found[name] for found in covectors])
    params, rest = _split(model)
    grads, *momenta = (_split(dual)[0] for dual in duals)
    opt_state = momentum.in_new_coordinates(
      descent.opt_state, params, momenta, optimizer, is_new
    )
    return hooks.Descent(params, rest, grads, opt_state, descent.given)


def _layers(model: nnx.Module) -> dict[str, Any]:
  return {
    '/'.join(map(str, path)): layer
    for path, layer in nnx.iter_modules(model)
    if isinstance(getattr(layer, 'step_hook', None), Refresh)
  }


def _split(model: nnx.Module) -> list[nnx.State]:
  _, *states = nnx.split(model, nnx.Param, ...)
  return [nnx.as_pure(state) for state in states]
