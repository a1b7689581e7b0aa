"""The state of a run: all that a step reads and changes."""

import functools
from collections.abc import Callable, Mapping, Sequence
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
    sums: The sums of further scalars, like `loss_sum`, by name; empty unless
      `config.eval.step_norms` is `'mean'`.
  """

  step: jax.Array
  params: nnx.State
  rest: nnx.State
  opt_state: optax.OptState
  loss: jax.Array
  loss_sum: jax.Array
  sums: dict[str, jax.Array]


# What a step says of itself, beside the loss.
SCALARS = ('grad_norm', 'update_norm', 'param_norm')


def creator(
  config: Mapping[str, Any],
  input_shape: Sequence[int],
  num_classes: int,
  optimizer: optax.GradientTransformation,
) -> Callable[[jax.Array], tuple[nnx.GraphDef, TrainState]]:
  """Returns `create` for a resolved config: a function of the key alone."""
  takes_means = config['eval']['step_norms'] == 'mean'
  return functools.partial(
    create,
    config=config['model'],
    input_shape=input_shape,
    num_classes=num_classes,
    optimizer=optimizer,
    averaged=SCALARS if takes_means else (),
  )


def create(
  key: jax.Array,
  config: Mapping[str, Any],
  input_shape: Sequence[int],
  num_classes: int,
  optimizer: optax.GradientTransformation,
  averaged: Sequence[str] = (),
) -> tuple[nnx.GraphDef, TrainState]:
  """Builds the model and the state before the first step; call inside `jit`.

  Args:
    key: A `jax.random.key`, what the parameters are drawn from.
    config: `config.model`.
    input_shape: The shape of one example.
    num_classes: Number of logits.
    optimizer: The optimizer.
    averaged: The names of `TrainState.sums`.

  Returns:
    The graph of the model, which is static, and the state.
  """
  model = models.create(config, input_shape, num_classes, key)
  graphdef, *states = nnx.split(model, nnx.Param, ...)
  params, rest = map(nnx.as_pure, states)
  zero = jnp.zeros((), jnp.float32)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    rest=rest,
    opt_state=optimizer.init(params),
    loss=zero,
    loss_sum=zero,
    sums=dict.fromkeys(averaged, zero),
  )
  return graphdef, state
