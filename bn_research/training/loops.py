"""The loop over training steps: on the device, or one call of a step."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core


def is_slow_on_device(jaxpr: Any, platform: str) -> bool:
  """Returns whether a loop is slower on the device than one call for each step.

  XLA for a CPU has fast kernels for convolutions, but uses these kernels
  outside of loops only: in a loop, the backward pass of a convolution takes ten
  times as long. The answer depends on the program and on the platform, and on
  no clock, because both forms round differently.

  Args:
    jaxpr: The traced program, with the loop.
    platform: The platform of the devices, for example 'cpu'.
  """
  return platform == 'cpu' and 'conv_general_dilated' in _primitives(jaxpr)


def _primitives(value: Any) -> Iterator[str]:
  """Yields the names of all primitives in a jaxpr, at any depth."""
  if isinstance(value, core.ClosedJaxpr):
    value = value.jaxpr
  if isinstance(value, core.Jaxpr):
    for equation in value.eqns:
      yield equation.primitive.name
      yield from _primitives(tuple(equation.params.values()))
  elif isinstance(value, tuple | list):
    for item in value:
      yield from _primitives(item)


def call_each(
  program: Callable[..., Any], state: Any, arguments: Iterable[tuple[Any, ...]]
) -> tuple[Any, dict[str, Any]]:
  """Takes many training steps, at most up to the first non-finite loss.

  Args:
    program: The compiled program of one step: a function of the state and of
      further arguments, with the new state and the norms of the step.
    state: The training state before the first step.
    arguments: The further arguments of each step.

  Returns:
    The training state after the last step, and the norms of the last step.
  """
  norms: dict[str, Any] = {}
  arguments = iter(arguments)
  given = next(arguments, None)
  while given is not None:
    state, norms = program(state, *given)
    # The next batch is read while the devices compute this step.
    given = next(arguments, None)
    if not np.isfinite(jax.device_get(state.loss)):
      break
  return state, norms
