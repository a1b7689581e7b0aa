"""The weights and the moments that an evaluation takes.

An evaluation takes the last weights or an average of the weights, and the
running moments or moments that are measured for these weights.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from bn_research import errors
from bn_research.layers.nnx import reestimation
from bn_research.models.interface import Network
from bn_research.optim import averaging
from bn_research.training import evaluation, mesh
from bn_research.training import step as step_lib
from bn_research.training.state import TrainState


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
  size = evaluation.batches(num_examples, num_devices, numbers).shape[1]
  # The size is rounded up, possibly above the number of examples.
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

  def call(model: Network, batch: jax.Array) -> None:
    batch = mesh.divided(batch)
    model(to_input(examples.images[batch]), train=True)

  reestimation.reestimate(model, indices, call)
  return nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))


def of_weights(
  weights: str, function: Callable[..., Any]
) -> Callable[..., Any]:
  """Returns a function of a training state, for the weights of a config.

  Args:
    weights: `config.eval.weights`: 'last' or 'average'.
    function: A function of a training state and of further arguments.
  """
  if weights == 'last':
    return function

  @functools.wraps(function)
  def of_average(state: TrainState, *args: Any, **parts: Any) -> Any:
    return function(averaged(state), *args, **parts)

  return of_average


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
