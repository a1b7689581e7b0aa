"""The state of a run: all that a step reads and changes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bn_research import models


class TrainState(NamedTuple):
  """A pytree of arrays.

  Attributes:
    step: () int32, steps completed.
    params: The model's parameters, as plain arrays.
    rest: What else the model holds, such as running statistics.
    opt_state: The optimizer's state.
    loss: () float32, the loss of the last step.
    loss_sum: () float32, the sum of the losses since the last row of metrics;
      here, so that a row does not depend on where chunks were cut.
  """

  step: jax.Array
  params: nnx.State
  rest: nnx.State
  opt_state: optax.OptState
  loss: jax.Array
  loss_sum: jax.Array


def create(
  key: jax.Array,
  config: Mapping[str, Any],
  input_shape: Sequence[int],
  num_classes: int,
  optimizer: optax.GradientTransformation,
) -> tuple[nnx.GraphDef, TrainState]:
  """Builds the model and the state before the first step; call inside `jit`.

  Args:
    key: A `jax.random.key`, what the parameters are drawn from.
    config: `config.model`.
    input_shape: The shape of one example.
    num_classes: Number of logits.
    optimizer: The optimizer.

  Returns:
    The graph of the model, which is static, and the state.
  """
  model = models.create(config, input_shape, num_classes, key)
  graphdef, *states = nnx.split(model, nnx.Param, ...)
  params, rest = map(nnx.as_pure, states)
  zero = jnp.zeros((), jnp.float32)
  state = TrainState(
    jnp.zeros((), jnp.int32), params, rest, optimizer.init(params), zero, zero
  )
  return graphdef, state
