"""The argument of a probe: the state of a run, and a step of the training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
  """A step of the training on the mini-batch of an observation.

  The step does not change the run, which continues from the state before the
  step.

  Attributes:
    loss: () float32, the mean loss of the mini-batch, in nats.
    grads: The gradient of the loss, a pytree like `params`.
    updates: The updates of the optimizer, a pytree like `params`.
    origin: The parameters and the further state of the model before the step.
      If PRONG moves layers to new coordinates in this step, then `origin` is in
      the new coordinates, as `grads`, `updates` and `params` are.
    params: The parameters after the step, `origin[0] + updates`.
    rest: The further state of the model after the step, for example running
      moments.
    opt_state: The state of the optimizer after the step.
  """

  loss: jax.Array
  grads: Any
  updates: Any
  origin: tuple[Any, Any]
  params: Any
  rest: Any
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class Observation:
  """The state of a run after some steps, with a mini-batch.

  A compiled program computes only the quantities that the probe uses.

  Attributes:
    num_steps: () int32, the number of completed steps.
    x: (batch, ...) float32, the input of the network.
    labels: (batch,) int32.
    params: The parameters of the model.
    rest: The further state of the model, for example running moments.
    opt_state: The state of the optimizer.
    losses: A function from logits (batch, num_classes) and labels to losses
      (batch,), in nats.
    make_model: A function from `params` and `rest` to a copy of the model. The
      call of the copy is `model(x, train=..., tap=...)`. The call updates the
      running moments of the copy only.
    take_step: A function without arguments, which returns the `Step` of the
      training on this mini-batch.
  """

  num_steps: jax.Array
  x: jax.Array
  labels: jax.Array
  params: Any
  rest: Any
  opt_state: Any
  losses: Callable[[jax.Array, jax.Array], jax.Array]
  make_model: Callable[[Any, Any], nnx.Module]
  take_step: Callable[[], Step]

  def model(self, params: Any = None, rest: Any = None) -> Any:
    """Returns a copy of the model.

    Args:
      params: The parameters of the copy, for example
        `self.take_step().params`; None for `self.params`.
      rest: The further state of the copy, for example
        `self.take_step().origin[1]`; None for `self.rest`.
    """
    params = self.params if params is None else params
    return self.make_model(params, self.rest if rest is None else rest)

  def loss(self, params: Any = None, rest: Any = None) -> jax.Array:
    """Returns the mean loss of the mini-batch, in training mode.

    Args:
      params: As in `model`.
      rest: As in `model`.

    Returns:
      () float32, in nats.
    """
    logits = self.model(params, rest)(self.x, train=True)
    return self.losses(logits, self.labels).mean()
