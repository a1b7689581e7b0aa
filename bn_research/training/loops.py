"""The loop over training steps: on the device, or one call of a step."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from bn_research.training.step import Measured, TrainState


def is_slow_on_device(jaxpr: Any, platform: str) -> bool:
  """Returns whether a loop is slower on the device than one call for each step.

  XLA for a CPU has fast kernels for convolutions, but uses these kernels
  outside of loops only: in a loop, the backward pass of a convolution takes ten
  times as long. The answer depends on the program and on the platform, and on
  no clock, because both forms round differently.

  Args:
    jaxpr: The traced forward pass of the network.
    platform: The platform of the devices, for example 'cpu'.
  """
  return platform == 'cpu' and 'conv_general_dilated' in primitives(jaxpr)


def primitives(value: Any) -> Iterator[str]:
  """Yields the names of all primitives in a jaxpr, at any depth."""
  if isinstance(value, core.ClosedJaxpr):
    value = value.jaxpr
  if isinstance(value, core.Jaxpr):
    for equation in value.eqns:
      yield equation.primitive.name
      yield from primitives(tuple(equation.params.values()))
  elif isinstance(value, tuple | list):
    for item in value:
      yield from primitives(item)


def call_each(
  program: Callable[..., tuple[TrainState, Measured]],
  state: TrainState,
  arguments: Iterable[tuple[Any, ...]],
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes many training steps, at most up to the first non-finite loss.

  The devices always have a step to compute: the host reads the loss of a step
  after the start of the next step, and the next batch before the end of the
  step.

  Args:
    program: The compiled `step.guarded_step`: a function of the state and of
      further arguments.
    state: The training state before the first step.
    arguments: The further arguments of each step.

  Returns:
    The training state after the last step, and the norms of the last step.
  """
  last: Measured | None = None
  for given in arguments:
    state, measured = program(state, *given)
    # After a non-finite loss, the started step changes nothing.
    if last is not None and not np.isfinite(jax.device_get(last.loss)):
      break
    last = measured
  return state, {} if last is None else last.norms
