"""Optimizers by name, with the ranges of their options checked."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from bn_research import ranges, registry
from bn_research.preconditioning import precondition_by_input_covariance

PRECONDITIONS = {
  'none': optax.identity,
  'input_covariance': precondition_by_input_covariance,
}
"""Transformations of the update of `sgd`, by name."""


def sgd(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.0,
  nesterov: bool = False,
  precondition: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
  """Stochastic gradient descent with momentum.

    v <- momentum v + g,    ΔW = -learning_rate v

  Args:
    learning_rate: The learning rate, or a schedule of optax.
    momentum: Weight of the old value in the sum of gradients, in [0, 1).
    nesterov: Whether the update looks one step ahead: ΔW has g + momentum v in
      the place of v.
    precondition: `none`, or `input_covariance` with options: the preconditioner
      of the update.

  Returns:
    The transformation of the gradient.

  Raises:
    UserError: If the preconditioner is unknown.
    ValueError: If an option is out of range.

  Source: Polyak (1964); Nesterov (1983); Sutskever et al. (2013).
  """
  ranges.weight_of_old(momentum=momentum)
  if nesterov and not momentum:
    raise ValueError('nesterov needs a momentum above 0')
  # For a momentum of 0.0, optax would keep a trace without any use. For None,
  # optax keeps no trace.
  descent = optax.sgd(learning_rate, momentum or None, nesterov)
  if precondition is None:
    return descent
  where = 'config.optimizer.precondition'
  # The preconditioner comes after the momentum: the trace is a sum of raw
  # gradients, and each later preconditioner can be applied to this sum.
  return optax.chain(
    descent, registry.create(where, PRECONDITIONS, precondition)
  )


def adam(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  """Adam: the averaged gradient, divided by the root of the averaged square.

  Args:
    learning_rate: The learning rate, or a schedule of optax.
    b1: Weight of the old value in the average of the gradient, in [0, 1).
    b2: Weight of the old value in the average of the square, in [0, 1).
    eps: The number added to the root.

  Returns:
    The transformation of the gradient.

  Raises:
    ValueError: If an option is out of range.

  Source: Kingma and Ba (2015), Algorithm 1.
  """
  _check_adam(b1, b2, eps)
  return optax.adam(learning_rate, b1, b2, eps)


def adamw(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 1e-4,
  mask: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
  """Adam with weight decay that the averages do not see.

    ΔW = -learning_rate (Adam's quotient + weight_decay W)

  Args:
    learning_rate: The learning rate, or a schedule of optax.
    b1: Weight of the old value in the average of the gradient, in [0, 1).
    b2: Weight of the old value in the average of the square, in [0, 1).
    eps: The number added to the root.
    weight_decay: The decay of a parameter in a step, in units of the learning
      rate.
    mask: A function from the parameters to a tree of bool: which parameters
      decay. None for all.

  Returns:
    The transformation of the gradient.

  Raises:
    ValueError: If an option is out of range.

  Source: Loshchilov and Hutter (2019), Algorithm 2.
  """
  _check_adam(b1, b2, eps)
  ranges.non_negative(weight_decay=weight_decay)
  return optax.adamw(
    learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask
  )


def _check_adam(b1: float, b2: float, eps: float) -> None:
  ranges.weight_of_old(b1=b1, b2=b2)
  ranges.non_negative(eps=eps)


def rmsprop(
  learning_rate: optax.ScalarOrSchedule,
  decay: float = 0.9,
  eps: float = 1e-8,
  momentum: float = 0.0,
) -> optax.GradientTransformation:
  """RMSProp: the gradient, divided by the root of the averaged square.

  Args:
    learning_rate: The learning rate, or a schedule of optax.
    decay: Weight of the old value in the average of the square, in [0, 1).
    eps: The number added to the average of the square.
    momentum: Weight of the old value in the sum of updates, in [0, 1).

  Returns:
    The transformation of the gradient.

  Raises:
    ValueError: If an option is out of range.

  Source: Tieleman and Hinton (2012), Lecture 6.5.
  """
  ranges.weight_of_old(decay=decay, momentum=momentum)
  ranges.non_negative(eps=eps)
  return optax.rmsprop(learning_rate, decay, eps, momentum=momentum or None)
