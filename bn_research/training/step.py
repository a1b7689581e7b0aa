"""A training step, and a loop of many training steps in a single program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bn_research import hooks, probes
from bn_research.models.interface import Network
from bn_research.training import gradients, mesh
from bn_research.training.state import SCALARS, TrainState


class Examples(NamedTuple):
  """Stored examples on the devices: arrays, or shapes for a compilation.

  Attributes:
    images: Stored images, uint8 (num_examples, ...).
    labels: Classes, int32 (num_examples,).
    key: The key of the augmentation; None for examples that no step augments.
  """

  images: Any
  labels: Any
  key: Any = None


ToInput = Callable[[jax.Array], jax.Array]
Augment = Callable[[jax.Array, jax.Array], jax.Array]


def forward(
  state: TrainState,
  examples: Examples,
  batch: jax.Array | None = None,
  *,
  graphdef: nnx.GraphDef,
  to_input: ToInput,
) -> jax.Array:
  """Returns the logits of a training step on a batch of stored examples.

  Args:
    state: The training state before the step.
    examples: The argument `examples` of `on_batch`.
    batch: The argument `batch` of `on_batch`.
    graphdef: The graph definition of the model.
    to_input: The function from stored images to the inputs of the network.
  """
  images = examples.images if batch is None else examples.images[batch]
  model: Network = nnx.merge(graphdef, state.params, state.rest, copy=True)
  return model(to_input(images), train=True)


def train_step(
  state: TrainState,
  images: jax.Array,
  labels: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformationExtraArgs,
  rule: gradients.Rule = gradients.PLAIN,
) -> probes.Step:
  """Takes a training step along the gradient of the mean loss of a batch.

  Args:
    state: The training state before the step.
    images: Inputs of the network, float32 (batch, ...).
    labels: Classes, int32 (batch,).
    graphdef: The graph definition of the model.
    optimizer: The optimizer.
    rule: How the gradient is computed.

  Returns:
    The step: the loss, the gradient, the updates, and the new parameters,
    statistics and optimizer state.
  """
  model = nnx.merge(graphdef, state.params, state.rest)
  brought = hooks.Brought(model, state.opt_state)
  loss, rest, noted, grads = gradients.gradient(
    state.params, state.rest, images, labels, brought, graphdef, rule
  )
  # The hooks may move the model to new coordinates. A probe compares the model
  # before and after the step, and needs both models in the same coordinates.
  # The hooks therefore also move the model before the step. The training loop
  # does not use this moved old model, and XLA removes the computation.
  before = hooks.Descent(state.params, state.rest, grads, state.opt_state, {})
  old, new = (
    brought.before_update(at, noted, graphdef=graphdef, optimizer=optimizer)
    for at in (before, before._replace(rest=rest))
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
  """Returns the norms of a step for a row of metrics.

  Args:
    new: The step.

  Returns:
    `grad_norm`, `update_norm` and `param_norm`, each float32 (): the l2 norms
    of the gradient, of the updates, and of the parameters after the step.
  """
  trees = (new.grads, new.updates, new.params)
  return {
    name: optax.tree.norm(tree).astype(jnp.float32)
    for name, tree in zip(SCALARS, trees, strict=True)
  }


def next_state(state: TrainState, new: probes.Step) -> TrainState:
  """Returns the training state after a step."""
  # The norms take time in every step, and only the sums need the norms.
  measured = norms_of(new) if state.sums else {}
  return TrainState(
    step=state.step + 1,
    params=new.params,
    rest=new.rest,
    opt_state=new.opt_state,
    # The loss of a network of a user may have another type.
    loss=new.loss.astype(state.loss.dtype),
    loss_sum=state.loss_sum + new.loss.astype(state.loss.dtype),
    sums={name: total + measured[name] for name, total in state.sums.items()},
  )


def on_batch(
  state: TrainState,
  examples: Examples,
  batch: jax.Array | None = None,
  *,
  to_input: ToInput,
  augment: Augment | None = None,
  **parts: Any,
) -> probes.Step:
  """Takes a training step on a batch of stored examples.

  Args:
    state: The training state before the step.
    examples: The training examples.
    batch: Indices of the examples in the batch, int32 (batch,); None if
      `examples` is the batch.
    to_input: The function from stored images to the inputs of the network.
    augment: None, or a random change of stored images: a function of a key and
      of the images. The key depends on the seed and on the step only.
    **parts: The further arguments of `train_step`.

  Returns:
    The result of `train_step`.
  """
  images, labels, key = examples
  if batch is not None:
    # Each device computes with a part of the batch.
    batch = mesh.divided(batch)
    images, labels = images[batch], labels[batch]
  if augment is not None:
    images = augment(jax.random.fold_in(key, state.step), images)
  return train_step(state, to_input(images), labels, **parts)


def scalars(
  state: TrainState,
  examples: Examples,
  batch: jax.Array | None = None,
  **parts: Any,
) -> dict[str, jax.Array]:
  """Returns the norms of the next step, without a new state.

  This function is compiled as a separate program. Inside the loop of
  `train_steps`, the norms would make every step 5 to 13 % slower for the
  network of Figure 1, even with the norms of only a single step: the loop would
  have to keep the updates as separate arrays.

  Args:
    state: The training state before the step.
    examples: The training examples.
    batch: Indices of the examples in the batch, int32 (batch,); None if
      `examples` is the batch.
    **parts: The further arguments of `on_batch`.

  Returns:
    The result of `norms_of`.
  """
  return norms_of(on_batch(state, examples, batch, **parts))


def next_step(
  state: TrainState,
  examples: Examples,
  batch: jax.Array | None = None,
  **parts: Any,
) -> TrainState:
  """Takes one training step.

  Args:
    state: The training state before the step.
    examples: The training examples.
    batch: Indices of the examples in the batch, int32 (batch,); None if
      `examples` is the batch.
    **parts: The further arguments of `on_batch`.

  Returns:
    The training state after the step.
  """
  return next_state(state, on_batch(state, examples, batch, **parts))


class Measured(NamedTuple):
  """What the host reads of a step, in buffers that the next step leaves alone.

  Attributes:
    loss: The loss of the step, float32 (), in nats.
    norms: The result of `norms_of`; empty if the state has sums of the norms.
  """

  loss: jax.Array
  norms: dict[str, jax.Array]


def guarded_step(
  state: TrainState,
  examples: Examples,
  batch: jax.Array | None = None,
  **parts: Any,
) -> tuple[TrainState, Measured]:
  """Takes one training step, and measures the step.

  After a non-finite loss, the step changes nothing. The host can therefore
  start a step before the host knows the loss of the step before.

  With one call for each step, a second program for the norms alone would be a
  second compilation, which takes a minute for a deep network.

  Args:
    state: The training state before the step.
    examples: The training examples.
    batch: The argument `batch` of `on_batch`.
    **parts: The further arguments of `on_batch`.

  Returns:
    The training state after the step, or the same state after a non-finite
    loss, and the loss and the norms of the step.
  """
  new = on_batch(state, examples, batch, **parts)
  goes_on = jnp.isfinite(state.loss)
  after = jax.tree.map(
    lambda leaf, old: jax.lax.select_n(goes_on, old, leaf),
    next_state(state, new),
    state,
  )
  return after, Measured(new.loss, {} if state.sums else norms_of(new))


def train_steps(
  state: TrainState,
  examples: Examples,
  indices: jax.Array,
  num_steps: jax.Array,
  **parts: Any,
) -> TrainState:
  """Takes many training steps, at most up to the first non-finite loss.

  The number of steps is traced, and a single compiled program runs chunks of
  every length. Because the program is the same, the length of chunks does not
  change a bit of the result.

  Args:
    state: The training state before the first step.
    examples: The training examples.
    indices: Indices of the examples of each step, int32 (max_steps, batch).
    num_steps: Number of rows of `indices` to use, int32 ().
    **parts: The further arguments of `on_batch`.

  Returns:
    The training state after the last step.
  """
  start = state.step

  def unfinished(state: TrainState) -> jax.Array:
    return (state.step - start < num_steps) & jnp.isfinite(state.loss)

  def body(state: TrainState) -> TrainState:
    return next_step(state, examples, indices[state.step - start], **parts)

  return jax.lax.while_loop(unfinished, body, state)
