"""From the optimizer in a config to an optax transformation."""

from collections.abc import Mapping
from typing import Any

import optax

from bn_research import errors, ranges, registry
from bn_research.preconditioning import precondition_by_input_covariance


def create(
  config: Mapping[str, Any], num_steps: int
) -> optax.GradientTransformationExtraArgs:
  """Creates the optimizer that a config names.

  Args:
    config: `name`, `learning_rate` and the optimizer's own options; `schedule`,
      where the learning rate is to change during the run, holds the `name` of a
      schedule and its options. Of `sgd`, `precondition` may hold the `name`
      `none`, or `input_covariance` and the options of
      `input_covariance.precondition_by_input_covariance`, which works on the
      momentum of raw gradients. Options that are None keep their defaults.
    num_steps: The length of the run, in steps.

  Returns:
    An optax gradient transformation.

  Raises:
    UserError: If a name or an option is unknown, or a number out of range.
  """
  options = dict(config)
  schedule = options.pop('schedule', None) or 'constant'
  where = 'config.optimizer.schedule'
  _check_takes_rate(where, SCHEDULES, schedule)
  learning_rate = registry.create(
    where,
    SCHEDULES,
    schedule,
    learning_rate=options.pop('learning_rate'),
    num_steps=num_steps,
  )
  where = 'config.optimizer'
  _check_takes_rate(where, OPTIMIZERS, options)
  return optax.with_extra_args_support(
    registry.create(where, OPTIMIZERS, options, learning_rate=learning_rate)
  )


def _check_takes_rate(
  where: str, table: Mapping[str, Any], section: Any
) -> None:
  """Raises a UserError if a part would leave the learning rate out."""
  name, _ = registry.split(section)
  factory = registry.find(where, table, name)
  parameters = registry.parameters_of(where, factory, name)
  if not registry.takes(parameters, 'learning_rate'):
    raise errors.UserError(
      f'{where}: {name!r} has no argument learning_rate; add one, a number or a'
      ' schedule of optax'
    )


def _sgd(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.0,
  nesterov: bool = False,
  precondition: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
  ranges.weight_of_old(momentum=momentum)
  if nesterov and not momentum:
    raise ValueError('nesterov needs a momentum above 0')
  # With a momentum of 0.0 optax would carry a trace that is never used.
  descent = optax.sgd(learning_rate, momentum or None, nesterov)
  if precondition is None:
    return descent
  where = 'config.optimizer.precondition'
  return optax.chain(
    descent, registry.create(where, PRECONDITIONS, precondition)
  )


def _adam(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  _check_adam(b1, b2, eps)
  return optax.adam(learning_rate, b1, b2, eps)


def _adamw(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
  _check_adam(b1, b2, eps)
  ranges.non_negative(weight_decay=weight_decay)
  return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)


def _check_adam(b1: float, b2: float, eps: float) -> None:
  ranges.weight_of_old(b1=b1, b2=b2)
  ranges.non_negative(eps=eps)


def _rmsprop(
  learning_rate: optax.ScalarOrSchedule,
  decay: float = 0.9,
  eps: float = 1e-8,
  momentum: float = 0.0,
) -> optax.GradientTransformation:
  ranges.weight_of_old(decay=decay, momentum=momentum)
  ranges.non_negative(eps=eps)
  return optax.rmsprop(learning_rate, decay, eps, momentum=momentum or None)


def _constant(learning_rate: float) -> float:
  ranges.non_negative(learning_rate=learning_rate)
  return learning_rate


def _cosine(
  learning_rate: float, num_steps: int, alpha: float = 0.0
) -> optax.Schedule:
  ranges.non_negative(learning_rate=learning_rate, alpha=alpha)
  return optax.cosine_decay_schedule(learning_rate, num_steps, alpha)


def _exponential(
  learning_rate: float, num_steps: int, decay: float = 0.01
) -> optax.Schedule:
  ranges.non_negative(learning_rate=learning_rate)
  ranges.positive(decay=decay)
  return optax.exponential_decay(learning_rate, num_steps, decay)


OPTIMIZERS = {
  'sgd': _sgd,
  'adam': _adam,
  'adamw': _adamw,
  'rmsprop': _rmsprop,
}
"""Optimizers by name: functions of `learning_rate`, a number or a schedule."""

PRECONDITIONS = {
  'none': optax.identity,
  'input_covariance': precondition_by_input_covariance,
}
"""What changes the update of `sgd`, by name."""

SCHEDULES = {
  'constant': _constant,
  'cosine': _cosine,
  'exponential': _exponential,
}
"""Learning rates by name: functions of `learning_rate` and `num_steps`."""
