"""One step of training, and many of them in one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec

from bn_research import hooks, probes
from bn_research.training.state import SCALARS, TrainState


class Examples(NamedTuple):
  """Examples that wait on the device.

  Attributes:
    images: (num_examples, ...) uint8.
    labels: (num_examples,) int32.
  """

  images: jax.Array
  labels: jax.Array


ToInput = Callable[[jax.Array], jax.Array]
Carry = tuple[TrainState, dict[str, jax.Array]]


def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy of each example: -log softmax(logits)[label].

  Args:
    logits: (batch, num_classes).
    labels: (batch,) int32.

  Returns:
    (batch,) losses in nats.
  """
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def train_step(
  state: TrainState,
  images: jax.Array,
  labels: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformationExtraArgs,
) -> probes.Step:
  """Takes one step down the gradient of the mean loss of a batch.

  Args:
    state: The state before the step.
    images: (batch, ...) float32, what the network sees.
    labels: (batch,) int32.
    graphdef: The graph of the model.
    optimizer: The optimizer.

  Returns:
    The step: the loss, the gradient, the updates, and what is new after it.
  """
  model = nnx.merge(graphdef, state.params, state.rest)
  brought = hooks.Brought(model, state.opt_state)

  def loss_fn(params: nnx.State) -> tuple[jax.Array, Any]:
    # Without a copy, statistics of this trace would land in the outer one.
    model: Any = nnx.merge(graphdef, params, state.rest, copy=True)
    noted = brought.listen(model)
    loss = losses(model(images, train=True), labels).mean()
    return loss, (nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param))), noted)

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  (loss, (rest, noted)), grads = grad_fn(state.params)
  old = hooks.Descent(state.params, state.rest, grads, state.opt_state, {})
  old, new = (
    brought.before_update(at, noted, graphdef=graphdef, optimizer=optimizer)
    for at in (old, old._replace(rest=rest))
  )
  updates, opt_state = optimizer.update(
    new.grads, new.opt_state, new.params, **new.given
  )
  params = optax.apply_updates(new.params, updates)
  origin = old.params, old.rest
  return probes.Step(
    loss, new.grads, updates, origin, params, new.rest, opt_state
  )


def next_state(state: TrainState, new: probes.Step) -> TrainState:
  """Returns the state after one step."""
  measured = scalars(new) if state.sums else {}
  return TrainState(
    step=state.step + 1,
    params=new.params,
    rest=new.rest,
    opt_state=new.opt_state,
    loss=new.loss,
    loss_sum=state.loss_sum + new.loss,
    sums={name: sum_ + measured[name] for name, sum_ in state.sums.items()},
  )


def scalars(new: probes.Step) -> dict[str, jax.Array]:
  """Returns what a row of metrics says of one step, beside the loss.

  Args:
    new: The step.

  Returns:
    `grad_norm`, `update_norm` and `param_norm`: () float32, the l2 norms of the
    gradient, of the updates, and of the parameters after the step.
  """
  trees = (new.grads, new.updates, new.params)
  return {
    name: optax.tree.norm(tree).astype(jnp.float32)
    for name, tree in zip(SCALARS, trees, strict=True)
  }


def train_steps(
  state: TrainState,
  examples: Examples,
  indices: jax.Array,
  num_steps: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformationExtraArgs,
  to_input: ToInput,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes many steps; stops after the first whose loss is not finite.

  The number of steps is traced, so that one compiled program serves chunks of
  every length; and as the program is the same, so are the bits.

  Args:
    state: The state before the first step.
    examples: The training examples.
    indices: (max_steps, batch) int32, the examples of each step.
    num_steps: () int32, how many rows of `indices` to use.
    graphdef: The graph of the model.
    optimizer: The optimizer.
    to_input: From stored images to what the network sees.

  Returns:
    The state after the last step taken, and the scalars of step `num_steps`;
    zeros where the loop stopped before. There are none where the state sums
    the scalars of all steps.
  """
  start = state.step

  def step(state: TrainState) -> probes.Step:
    batch = jax.lax.with_sharding_constraint(
      indices[state.step - start], PartitionSpec('data')
    )
    x, labels = to_input(examples.images[batch]), examples.labels[batch]
    return train_step(state, x, labels, graphdef=graphdef, optimizer=optimizer)

  def unfinished(carry: Carry) -> jax.Array:
    state, _ = carry
    return (state.step - start < num_steps) & jnp.isfinite(state.loss)

  def body(carry: Carry) -> Carry:
    state, measured = carry
    new = step(state)
    # Norms at every step would take about as long as a step of a small network.
    is_last = state.step - start == num_steps - 1
    if measured:
      measured = jax.lax.cond(is_last, scalars, lambda _: measured, new)
    return next_state(state, new), measured

  names = () if state.sums else SCALARS
  zeros = {name: jnp.zeros((), jnp.float32) for name in names}
  return jax.lax.while_loop(unfinished, body, (state, zeros))
