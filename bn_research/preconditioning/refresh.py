"""The hook that moves layers to new coordinates before the update."""

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
  """The hook of layers with moving coordinates, for example `WhitenedDense`.

  The hook needs the attribute `observe` and the method `refresh` of a layer. A
  layer of a further class with this attribute and this method may have the same
  hook as the attribute `step_hook`.

  Every layer averages the moments of each step, and moves to new coordinates at
  an interval. The move changes neither the function of the model nor the
  meaning of gradients and momentum. If the optimizer holds more than a
  momentum, as Adam does, then the averages of the optimizer restart: see
  `momentum`.
  """

  moves_parameters = True

  def listen(self, model: nnx.Module) -> dict[str, norms.Moments]:
    """Makes the layers record the moments of inputs, by name of the layer."""
    classes = tuple({type(layer) for layer in _layers(model).values()})
    return recording.record_inputs(model, of=classes)

  def merged(self, noted: dict[str, norms.Moments]) -> dict[str, norms.Moments]:
    """Returns the moments of a mini-batch from those of micro-batches."""
    return recording.merged(noted)

  def before_update(
    self,
    descent: hooks.Descent,
    noted: Mapping[str, norms.Moments],
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
  ) -> hooks.Descent:
    """Returns the descent in the new coordinates.

    Args:
      descent: The descent between the gradient and the update.
      noted: The moments of the inputs in the forward pass of the gradient.
      graphdef: The graph definition of the model.
      optimizer: The optimizer.
    """
    momenta = momentum.momenta_of(descent.opt_state, descent.params)
    # A gradient has the structure of the parameters, and a copy of the model
    # can hold the gradient in place of the parameters. A momentum can, too.
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
