"""How good a model is on all examples of a split, and what probes see."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec

from bn_research import probes
from bn_research.layers.nnx import reestimation
from bn_research.training import step as step_lib
from bn_research.training.state import TrainState

_MAX_BATCH = 10_000


def batches(num_examples: int, num_devices: int) -> np.ndarray:
  """Cuts all examples into few batches of one size that devices can share.

  Args:
    num_examples: Size of the split.
    num_devices: What the size of a batch is a multiple of.

  Returns:
    (num_batches, batch) int32 indices; -1 where a batch is not full.
  """
  num_batches = -(-num_examples // _MAX_BATCH)
  size = -(-num_examples // (num_batches * num_devices)) * num_devices
  indices = np.arange(num_batches * size, dtype=np.int32)
  return np.where(indices < num_examples, indices, -1).reshape(-1, size)


def evaluate(
  state: TrainState,
  examples: step_lib.Examples,
  indices: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  to_input: step_lib.ToInput,
  num_classes: int,
) -> dict[str, jax.Array]:
  """Measures loss and accuracy with the statistics that the state holds.

  Args:
    state: The state; its parameters and statistics are read.
    examples: The examples to evaluate on.
    indices: (num_batches, batch) int32, as `batches` cuts them.
    graphdef: The graph of the model.
    to_input: From stored images to what the network sees.
    num_classes: Number of logits.

  Returns:
    `'accuracy'` and `'loss'`, means over all examples.

  Raises:
    ValueError: If the model returns another number of logits.
  """
  model: Any = nnx.merge(graphdef, state.params, state.rest, copy=True)

  def sums(batch: jax.Array) -> tuple[jax.Array, jax.Array]:
    batch = jax.lax.with_sharding_constraint(batch, PartitionSpec('data'))
    labels = examples.labels[batch]
    logits = model(to_input(examples.images[batch]), train=False)
    if logits.shape != (len(batch), num_classes):
      raise ValueError(
        f'the model returned logits {logits.shape} for {len(batch)} examples of'
        f' {num_classes} classes; return ({len(batch)}, {num_classes})'
      )
    is_real = batch >= 0
    correct = (logits.argmax(-1) == labels) & is_real
    loss = jnp.where(is_real, step_lib.losses(logits, labels), 0)
    return correct.sum(), loss.sum()

  correct, loss = jax.lax.map(sums, indices)
  count = len(examples.labels)
  return {'accuracy': correct.sum() / count, 'loss': loss.sum() / count}


def stacks(num_examples: int, num_devices: int) -> list[np.ndarray]:
  """Cuts all examples into batches that are all full, for `reestimate`.

  Args:
    num_examples: Size of the training split.
    num_devices: Devices that share a batch.

  Returns:
    Arrays of indices (num_batches, batch) int32: full batches that the devices
    share, and a single batch of the few that are left over.
  """
  size = batches(num_examples, num_devices).shape[1]
  size = min(size, num_examples // num_devices * num_devices)
  whole = num_examples // size * size if size else 0
  indices = np.arange(num_examples, dtype=np.int32)
  parts = indices[:whole].reshape(-1, max(size, 1)), indices[None, whole:]
  return [part for part in parts if part.size]


def reestimate(
  state: TrainState,
  examples: step_lib.Examples,
  *stacks: jax.Array,
  graphdef: nnx.GraphDef,
  to_input: step_lib.ToInput,
) -> nnx.State:
  """Measures the moments that normalize at inference over the training split.

  Args:
    state: The state; its parameters and statistics are read.
    examples: The training examples.
    *stacks: What `stacks` returns.
    graphdef: The graph of the model.
    to_input: From stored images to what the network sees.

  Returns:
    `state.rest` with these moments in place of the running ones; as it is where
    the model has no such moments.

  Raises:
    ValueError: If the moments of a layer cannot be pooled.

  Source: Ioffe and Szegedy (2015), Algorithm 2.
  """
  model: Any = nnx.merge(graphdef, state.params, state.rest, copy=True)
  if not reestimation.measures(model):
    return state.rest
  num_devices = jax.sharding.get_abstract_mesh().size

  def call(model: Any, batch: jax.Array) -> None:
    if len(batch) % num_devices == 0:
      batch = jax.lax.with_sharding_constraint(batch, PartitionSpec('data'))
    model(to_input(examples.images[batch]), train=True)

  reestimation.reestimate(model, stacks, call)
  return nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))


def probe(
  state: TrainState,
  examples: step_lib.Examples,
  *,
  measure: probes.Probe,
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformationExtraArgs,
  to_input: step_lib.ToInput,
) -> dict[str, jax.Array]:
  """Measures a run as it trains, and leaves the state as it is.

  Args:
    state: The state of the run.
    examples: A batch of stored examples.
    measure: What to measure of an observation.
    graphdef: The graph of the model.
    optimizer: The optimizer.
    to_input: From stored images to what the network sees.

  Returns:
    What `measure` returns.

  Raises:
    ValueError: If `measure` returns no arrays by name.
  """
  x, labels = to_input(examples.images), examples.labels

  def take_step() -> probes.Step:
    return step_lib.train_step(
      state, x, labels, graphdef=graphdef, optimizer=optimizer
    )

  return probes.measured(
    measure,
    probes.Observation(
      num_steps=state.step,
      x=x,
      labels=labels,
      params=state.params,
      rest=state.rest,
      opt_state=state.opt_state,
      losses=step_lib.losses,
      make_model=lambda *states: nnx.merge(graphdef, *states, copy=True),
      take_step=take_step,
    ),
  )
