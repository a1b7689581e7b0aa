"""The training state: all arrays that a training step reads and changes."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bn_research import errors, fitting, hooks, models
from bn_research.optim import averaging


class TrainState(NamedTuple):
  """The training state, a pytree of arrays.

  Attributes:
    step: Number of completed steps, int32 ().
    params: The parameters of the model, as plain arrays.
    rest: The further variables of the model, for example running statistics.
    opt_state: The state of the optimizer.
    loss: The loss of the last step, float32 (), in nats.
    loss_sum: The sum of the losses since the last row of metrics, float32 ().
      The sum is part of the state, because a row of metrics must not depend on
      the lengths of chunks.
    sums: Sums of further scalars since the last row, by name, each float32 ().
      The dict is empty unless `config.eval.step_norms` is `'mean'`.
  """

  step: jax.Array
  params: nnx.State
  rest: nnx.State
  opt_state: optax.OptState
  loss: jax.Array
  loss_sum: jax.Array
  sums: dict[str, jax.Array]


# The scalars of a step in a row of metrics, besides the loss.
SCALARS = ('grad_norm', 'update_norm', 'param_norm')


def creator(
  config: Mapping[str, Any],
  input_shape: Sequence[int],
  num_classes: int,
  optimizer: optax.GradientTransformation,
) -> Callable[[jax.Array], tuple[nnx.GraphDef, TrainState]]:
  """Returns `create` for a resolved config, as a function of the key only.

  Args:
    config: The resolved config.
    input_shape: Shape of an example.
    num_classes: Number of logits.
    optimizer: The optimizer.

  Returns:
    A function of a `jax.random.key`, with the result of `create`.
  """
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
  """Builds the model and the training state before the first step.

  The function is meant for a call inside `jit`.

  Args:
    key: A `jax.random.key`, from which the initial parameters are drawn.
    config: `config.model`.
    input_shape: Shape of an example.
    num_classes: Number of logits.
    optimizer: The optimizer.
    averaged: The names in `TrainState.sums`.

  Returns:
    The graph definition of the model, which is static, and the training state.
  """
  model = models.create(config, input_shape, num_classes, key)
  graphdef, *states = nnx.split(model, nnx.Param, ...)
  params, rest = map(nnx.as_pure, states)
  opt_state = optimizer.init(params)
  if (
    averaging.find(opt_state) is not None
    and hooks.Brought(model, opt_state).moves_parameters
  ):
    raise errors.UserError(
      'config.optimizer.average: the coordinates of the weights move, as in'
      ' prong, and weights in different coordinates have no average; set'
      ' config.optimizer.average to None'
    )
  zero = jnp.zeros((), jnp.float32)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    rest=rest,
    opt_state=opt_state,
    loss=zero,
    loss_sum=zero,
    sums=dict.fromkeys(averaged, zero),
  )
  return graphdef, state


def fitted(
  state: TrainState,
  images: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  to_input: Callable[[jax.Array], jax.Array],
) -> TrainState:
  """Returns the state with the layers fitted to training images.

  Args:
    state: The training state before the first step.
    images: Stored images of the training split, uint8 (num_examples, ...).
    graphdef: The graph definition of the model.
    to_input: The function from stored images to the inputs of the network.

  Returns:
    The state with new variables in `rest`. Parameters stay.
  """
  model = nnx.merge(graphdef, state.params, state.rest, copy=True)
  fitting.fit(model, to_input(images))
  rest = nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))
  return state._replace(rest=rest)
