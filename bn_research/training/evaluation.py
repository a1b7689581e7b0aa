"""Evaluates a model on all examples of a split."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bn_research.models.interface import Network
from bn_research.training import losses, mesh
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
  model: Network = nnx.merge(graphdef, state.params, state.rest, copy=True)

  def sums(batch: jax.Array) -> Sums:
    batch = mesh.divided(batch)
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
  model: Network = nnx.merge(graphdef, state.params, state.rest, copy=True)
  images, labels, _ = examples
  flat = images.reshape(-1, *images.shape[-3:])
  logits = model(to_input(flat), train=False)
  losses.check_logits(logits, len(flat), num_classes)
  if images.ndim == 5:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    parts = jax.nn.log_softmax(logits).reshape(*images.shape[:2], -1)
    # Logits are logarithms of probabilities, up to a constant: here log k.
    logits = jax.nn.logsumexp(parts, 1)
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
