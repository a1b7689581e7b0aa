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


def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy of each example: -log softmax(logits)[label].

  Args:
    logits: (batch, num_classes).
    labels: (batch,) int32.

  Returns:
    (batch,) losses in nats.

  Raises:
    ValueError: If the logits are of another shape.
  """
  if logits.ndim != 2 or len(logits) != len(labels):
    raise ValueError(
      f'the model returned logits {logits.shape} for {len(labels)} examples;'
      f' return ({len(labels)}, num_classes)'
    )
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


def norms_of(new: probes.Step) -> dict[str, jax.Array]:
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


def next_state(state: TrainState, new: probes.Step) -> TrainState:
  """Returns the state after one step."""
  measured = norms_of(new) if state.sums else {}
  return TrainState(
    step=state.step + 1,
    params=new.params,
    rest=new.rest,
    opt_state=new.opt_state,
    loss=new.loss,
    loss_sum=state.loss_sum + new.loss,
    sums={name: total + measured[name] for name, total in state.sums.items()},
  )


def on_batch(
  state: TrainState,
  examples: Examples,
  batch: jax.Array,
  *,
  to_input: ToInput,
  **parts: Any,
) -> probes.Step:
  """Takes one step on stored examples.

  Args:
    state: The state before the step.
    examples: The training examples.
    batch: (batch,) int32, which of them.
    to_input: From stored images to what the network sees.
    **parts: The graph of the model, and the optimizer: see `train_step`.
  """
  batch = jax.lax.with_sharding_constraint(batch, PartitionSpec('data'))
  x = to_input(examples.images[batch])
  return train_step(state, x, examples.labels[batch], **parts)


def scalars(
  state: TrainState, examples: Examples, batch: jax.Array, **parts: Any
) -> dict[str, jax.Array]:
  """Returns the norms of the step that comes next; see `norms_of`.

  It is a program of its own. Inside the loop of `train_steps` these norms would
  cost every step 5 to 13 % on the network of Figure 1, even if they were
  computed at one step only: updates would have to be kept apart.

  Args:
    state: The state before the step.
    examples: The training examples.
    batch: (batch,) int32, which of them the step is on.
    **parts: As in `on_batch`.
  """
  return norms_of(on_batch(state, examples, batch, **parts))


def train_steps(
  state: TrainState,
  examples: Examples,
  indices: jax.Array,
  num_steps: jax.Array,
  **parts: Any,
) -> TrainState:
  """Takes many steps; stops after the first whose loss is not finite.

  The number of steps is traced, so that one compiled program serves chunks of
  every length; and as the program is the same, so are the bits.

  Args:
    state: The state before the first step.
    examples: The training examples.
    indices: (max_steps, batch) int32, the examples of each step.
    num_steps: () int32, how many rows of `indices` to use.
    **parts: As in `on_batch`.

  Returns:
    The state after the last step taken.
  """
  start = state.step

  def unfinished(state: TrainState) -> jax.Array:
    return (state.step - start < num_steps) & jnp.isfinite(state.loss)

  def body(state: TrainState) -> TrainState:
    batch = indices[state.step - start]
    return next_state(state, on_batch(state, examples, batch, **parts))

  return jax.lax.while_loop(unfinished, body, state)
