"""Whitening between two steps: who listens, and moving to new coordinates."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

from bn_research import norms
from bn_research.layers.nnx import inputs
from bn_research.layers.nnx.whitened_dense import WhitenedDense
from bn_research.optim import input_covariance, momentum


class Learning(NamedTuple):
  """What a step is about to update.

  Attributes:
    params: The model's parameters.
    rest: What else the model holds.
    grads: Gradients, like `params`.
    opt_state: The optimizer's state.
  """

  params: nnx.State
  rest: nnx.State
  grads: nnx.State
  opt_state: optax.OptState


def record_inputs(
  model: nnx.Module, opt_state: optax.OptState
) -> dict[str, norms.Moments]:
  """Lets layers note the moments of their inputs, where these will be used.

  Args:
    model: The model, about to be called.
    opt_state: The state of the optimizer that is to train it.

  Returns:
    A dict, empty, which calls of the model fill: see `layers.nnx.inputs`.
  """
  if input_covariance.uses_input_moments(opt_state):
    return inputs.record_inputs(model)
  return inputs.record_inputs(model, of=(WhitenedDense,))


def refresh(
  learning: Learning,
  input_moments: Mapping[str, norms.Moments],
  *,
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
) -> Learning:
  """Lets every `WhitenedDense` learn from a step, and move where it is time to.

  What the model computes stays the same, and so does what gradients and
  momentum mean. Of an optimizer with more than momentum, such as Adam, what it
  holds restarts: see `optim.momentum`.

  Args:
    learning: Between the gradient and the update.
    input_moments: By the name of the layer, of the forward pass of that
      gradient.
    graphdef: The graph of the model.
    optimizer: The optimizer.

  Returns:
    The same in new coordinates; `learning` itself for a model that has none.
  """
  model = nnx.merge(graphdef, learning.params, learning.rest, copy=True)
  layers = _whitened(model)
  if not layers:
    return learning
  momenta = momentum.momenta_of(learning.opt_state, learning.params)
  duals = [
    nnx.merge(graphdef, tree, learning.rest, copy=True)
    for tree in (learning.grads, *momenta)
  ]
  is_new = jax.numpy.zeros((), bool)
  for name, layer in layers.items():
    covectors = [_whitened(dual)[name] for dual in duals]
    is_new |= layer.refresh(input_moments[name], covectors)
  params, rest = _split(model)
  grads, *momenta = (_split(dual)[0] for dual in duals)
  opt_state = momentum.in_new_coordinates(
    learning.opt_state, params, momenta, optimizer, is_new
  )
  return Learning(params, rest, grads, opt_state)


def _whitened(model: Any) -> dict[str, WhitenedDense]:
  return {
    '/'.join(map(str, path)): layer
    for path, layer in nnx.iter_modules(model)
    if isinstance(layer, WhitenedDense)
  }


def _split(model: Any) -> list[nnx.State]:
  _, *states = nnx.split(model, nnx.Param, ...)
  return [nnx.as_pure(state) for state in states]
