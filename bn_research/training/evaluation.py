"""Evaluates a model on all examples of a split, and calls probes."""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec

from bn_research import errors, probes
from bn_research.layers.nnx import reestimation
from bn_research.optim import averaging
from bn_research.training import gradients, losses
from bn_research.training import step as step_lib
from bn_research.training.state import TrainState

# The size of a batch bounds the memory of the activations. A convolution is
# also faster on a CPU if the activations of a batch are few: a ResNet-8 takes
# 0.35 ms an image of 32 x 32 pixels in batches of 500, and 0.45 ms in 2,000.
_MAX_BATCH = 10_000
_MAX_NUMBERS = 2**21
_MIN_BATCH = 128


def batches(
  num_examples: int, num_devices: int, numbers: int = 1, crops: int = 1
) -> np.ndarray:
  """Cuts all examples of a split into batches of the same size.

  A batch has at most 10,000 examples and about two million numbers of input,
  but 128 images if the split has so many. The size is rounded up to a
  multiple of `num_devices`. The number of batches is as small as possible.

  Args:
    num_examples: Number of examples in the split.
    num_devices: Number of devices that share each batch.
    numbers: Numbers of input in an example.
    crops: Number of images of an example.

  Returns:
    Indices of the examples, int32 (num_batches, batch). The index -1 fills the
    places after the last example.
  """
  least = max(_MIN_BATCH // crops, 1)
  most = min(max(_MAX_NUMBERS // numbers, least), _MAX_BATCH)
  num_batches = -(-num_examples // most)
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
  """Computes loss and accuracy at inference, with the statistics of the state.

  Args:
    state: The training state, whose parameters and statistics are used.
    examples: All examples of the split.
    indices: The result of `batches`, int32 (num_batches, batch).
    graphdef: The graph definition of the model.
    to_input: The function from stored images to the inputs of the network.
    num_classes: Number of logits.

  Returns:
    `'accuracy'` and `'loss'` (in nats), each a mean over all examples,
    float32 ().

  Raises:
    ValueError: If the shape of the logits is not (batch, num_classes).
  """
  model: Any = nnx.merge(graphdef, state.params, state.rest, copy=True)

  def sums(batch: jax.Array) -> Sums:
    batch = jax.lax.with_sharding_constraint(batch, PartitionSpec('data'))
    labels = jnp.where(batch >= 0, examples.labels[batch], -1)
    logits = model(to_input(examples.images[batch]), train=False)
    losses.check_logits(logits, len(batch), num_classes)
    return _sums(logits, labels)

  # A loop keeps the activations of only a single batch in memory.
  correct, loss, _ = jax.lax.map(sums, indices)
  count = len(examples.labels)
  return {'accuracy': correct.sum() / count, 'loss': loss.sum() / count}


class Sums(NamedTuple):
  """Sums over the examples of a batch.

  Attributes:
    correct: Number of examples whose class has the largest logit.
    loss: Sum of the losses, in nats.
    number: Number of examples.
  """

  correct: jax.Array
  loss: jax.Array
  number: jax.Array


def evaluate_batch(
  state: TrainState,
  examples: step_lib.Examples,
  *,
  graphdef: nnx.GraphDef,
  to_input: step_lib.ToInput,
  num_classes: int,
) -> Sums:
  """Computes sums of loss and accuracy at inference, for one batch of a stream.

  With k images of an example, the probabilities are p = Σ softmax(logits) / k,
  and the loss is -log p[label].

  Args:
    state: The training state, whose parameters and statistics are used.
    examples: The batch: images uint8 (batch, height, width, channels) or
      (batch, k, height, width, channels). The label -1 is no example.
    graphdef: The graph definition of the model.
    to_input: The function from stored images to the inputs of the network.
    num_classes: Number of logits.

  Raises:
    ValueError: If the shape of the logits is not (batch, num_classes).
  """
  model: Any = nnx.merge(graphdef, state.params, state.rest, copy=True)
  images, labels, _ = examples
  flat = images.reshape(-1, *images.shape[-3:])
  logits = model(to_input(flat), train=False)
  losses.check_logits(logits, len(flat), num_classes)
  if images.ndim == 5:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    parts = jax.nn.log_softmax(logits).reshape(*images.shape[:2], -1)
    # The logarithms of probabilities are logits of the same probabilities.
    logits = jax.nn.logsumexp(parts, 1) - math.log(images.shape[1])
  return _sums(logits, labels)


def means(parts: Iterable[Sums]) -> dict[str, float]:
  """Returns `'accuracy'` and `'loss'`, means over all examples of batches."""
  # The transfers wait for the devices, so all batches are computed first.
  sums = np.asarray(jax.device_get(list(parts)), np.float64).sum(0)
  correct, loss, number = sums.tolist()
  return {'accuracy': correct / number, 'loss': loss / number}


def _sums(logits: jax.Array, labels: jax.Array) -> Sums:
  """Returns sums over the examples; the label -1 is no example."""
  is_real = labels >= 0
  correct = (logits.argmax(-1) == labels) & is_real
  loss = jnp.where(is_real, losses.losses(logits, labels), 0)
  return Sums(correct.sum(), loss.sum(), is_real.sum())


def stacks(
  num_examples: int, num_devices: int, numbers: int = 1
) -> list[np.ndarray]:
  """Cuts the training split into batches without padding, for `reestimate`.

  Padding would change the measured moments.

  Args:
    num_examples: Number of examples in the training split.
    num_devices: Number of devices that share a batch.
    numbers: Numbers of input in an example.

  Returns:
    Arrays of indices, int32 (num_batches, batch). The first array has batches
    of a size that `num_devices` divides. The second array has a single batch of
    the remaining examples. An empty array is left out.
  """
  size = batches(num_examples, num_devices, numbers).shape[1]
  # `batches` rounds the size up, possibly above the number of examples.
  size = min(size, num_examples // num_devices * num_devices)
  whole = num_examples // size * size if size else 0
  indices = np.arange(num_examples, dtype=np.int32)
  # NumPy cannot reshape to batches of size 0, hence `max`.
  parts = indices[:whole].reshape(-1, max(size, 1)), indices[None, whole:]
  return [part for part in parts if part.size]


def reestimate(
  state: TrainState,
  examples: step_lib.Examples,
  *indices: jax.Array,
  graphdef: nnx.GraphDef,
  to_input: step_lib.ToInput,
) -> nnx.State:
  """Re-estimates the population statistics over the training split.

  Args:
    state: The training state, whose parameters and statistics are used.
    examples: The training examples.
    *indices: The arrays from `stacks`.
    graphdef: The graph definition of the model.
    to_input: The function from stored images to the inputs of the network.

  Returns:
    `state.rest` with the measured moments in place of the running moments. For
    a model without running moments, `state.rest` unchanged.

  Raises:
    ValueError: If the moments of a layer cannot be pooled.

  Source: Ioffe and Szegedy (2015), Algorithm 2.
  """
  model: Any = nnx.merge(graphdef, state.params, state.rest, copy=True)
  if not reestimation.measures(model):
    return state.rest
  num_devices = jax.sharding.get_abstract_mesh().size

  def call(model: Any, batch: jax.Array) -> None:
    # The devices cannot always share the batch of the remaining examples.
    if len(batch) % num_devices == 0:
      batch = jax.lax.with_sharding_constraint(batch, PartitionSpec('data'))
    model(to_input(examples.images[batch]), train=True)

  reestimation.reestimate(model, indices, call)
  return nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))


def averaged(state: TrainState) -> TrainState:
  """Returns the state with the average of the weights, if there is one."""
  found = averaging.find(state.opt_state)
  if found is None:
    return state
  params = jax.tree.map(
    lambda leaf, mean: mean.astype(leaf.dtype), state.params, found.average
  )
  return state._replace(params=params)


def check_weights(config: Mapping[str, Any], model: nnx.Module) -> None:
  """Checks that the evaluated weights have statistics of their own.

  Args:
    config: The resolved config.
    model: The model.

  Raises:
    UserError: If averaged weights would be evaluated with the running moments
      of other weights.
  """
  section = config['eval']
  if (
    section['weights'] == 'average'
    and section['population'] != 'reestimated'
    and reestimation.measures(model)
  ):
    raise errors.UserError(
      "config.eval.weights='average': the running moments belong to the last"
      " weights; set config.eval.population='reestimated'"
    )


def probe(
  state: TrainState,
  examples: step_lib.Examples,
  *,
  measure: probes.Probe,
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformationExtraArgs,
  to_input: step_lib.ToInput,
  rule: gradients.Rule = gradients.PLAIN,
) -> dict[str, jax.Array]:
  """Calls a probe on the training state, without a change of the state.

  Args:
    state: The training state.
    examples: A batch of stored examples, on which the probe measures.
    measure: The probe, a function of an `Observation`.
    graphdef: The graph definition of the model.
    optimizer: The optimizer.
    to_input: The function from stored images to the inputs of the network.
    rule: How the training computes the gradient.

  Returns:
    The measured arrays by name.

  Raises:
    ValueError: If the probe does not return a dict of arrays, or if an array
      has the name of a constant of the probe.
  """
  x, labels = to_input(examples.images), examples.labels

  # The step is a function, because tracing a step takes time, and many probes
  # need no step.
  def take_step() -> probes.Step:
    return step_lib.train_step(
      state, x, labels, graphdef=graphdef, optimizer=optimizer, rule=rule
    )

  return probes.measure(
    measure,
    probes.Observation(
      num_steps=state.step,
      x=x,
      labels=labels,
      params=state.params,
      rest=state.rest,
      opt_state=state.opt_state,
      losses=functools.partial(
        losses.losses, label_smoothing=rule.label_smoothing
      ),
      # A call in training mode changes running statistics, and must change only
      # the statistics of a copy.
      make_model=lambda *states: nnx.merge(graphdef, *states, copy=True),
      take_step=take_step,
    ),
  )
