"""What a probe sees: one step of training, and all that the step knows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
  """One step of training on the batch of an observation.

  The step changes nothing: the run goes on from the state before it.

  Attributes:
    loss: () float32, the mean loss of the batch, in nats.
    grads: The gradient of the loss, like `params`.
    updates: The optimizer adds these to the parameters, like `params`.
    origin: The parameters, and what else the model held, before the step. Where
      layers moved to new coordinates in this step (PRONG), these are written in
      the new coordinates, as `grads`, `updates` and `params` are.
    params: The parameters after the step, `origin[0] + updates`.
    rest: What else the model holds after the step, such as running statistics.
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
  """A moment of a run. A compiled program computes only what a probe uses.

  Attributes:
    num_steps: () int32, the steps completed.
    x: (batch, ...) float32, what the network sees.
    labels: (batch,) int32.
    params: The parameters of the model.
    rest: What else the model holds, such as running statistics.
    opt_state: The state of the optimizer.
    losses: From (batch, num_classes) logits and labels to (batch,) losses in
      nats.
    make_model: From parameters and the rest to a model, which is called as
      `model(x, train=..., tap=...)`. Statistics that the model would remember
      stay in this copy.
    take_step: Returns the step that training takes on this batch.
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
      params: Parameters in place of those of this moment, such as
        `self.take_step().params`; None for the parameters of this moment.
      rest: What else the model holds, such as `self.take_step().origin[1]`;
        None for the rest of this moment.
    """
    params = self.params if params is None else params
    return self.make_model(params, self.rest if rest is None else rest)

  def loss(self, params: Any = None, rest: Any = None) -> jax.Array:
    """Returns the mean loss of the batch, as training computes it.

    Args:
      params: As in `model`.
      rest: As in `model`.

    Returns:
      () float32, in nats.
    """
    logits = self.model(params, rest)(self.x, train=True)
    return self.losses(logits, self.labels).mean()
