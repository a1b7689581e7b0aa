"""Creates the optax transformation of the optimizer in a config."""

from collections.abc import Mapping
from typing import Any

import optax

from bn_research import errors, ranges, registry
from bn_research.preconditioning import precondition_by_input_covariance


def create(
  config: Mapping[str, Any], num_steps: int
) -> optax.GradientTransformationExtraArgs:
  """Creates the optimizer of a config.

  Args:
    config: The section `config.optimizer`, with `name`, `learning_rate` and the
      options of the optimizer. The optional `schedule` holds the `name` and the
      options of a learning rate schedule; the default is a constant learning
      rate. The optimizer `sgd` has the option `precondition`, which holds the
      `name` `none`, or the `name` `input_covariance` and the options of
      `preconditioning.precondition_by_input_covariance`. The preconditioner
      multiplies the momentum of raw gradients. An option with the value None
      keeps the default.
    num_steps: The length of the run, in steps.

  Returns:
    An optax gradient transformation, whose `update` accepts extra arguments.

  Raises:
    UserError: If a name or an option is unknown, if a number is out of range,
      or if a part of the user has no argument `learning_rate`.
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
  if not callable(learning_rate) and not isinstance(learning_rate, int | float):
    raise errors.UserError(
      f'{where} returned {learning_rate!r}; return a number, or a schedule of'
      ' optax'
    )
  where = 'config.optimizer'
  _check_takes_rate(where, OPTIMIZERS, options)
  optimizer = registry.create(
    where, OPTIMIZERS, options, learning_rate=learning_rate
  )
  if not (hasattr(optimizer, 'init') and hasattr(optimizer, 'update')):
    raise errors.UserError(
      f'{where}: {options.get("name")!r} returned {optimizer!r}; return a'
      ' gradient transformation of optax'
    )
  return optax.with_extra_args_support(optimizer)


def _check_takes_rate(
  where: str, table: Mapping[str, Any], section: Any
) -> None:
  """Raises a UserError if a part has no argument `learning_rate`."""
  # `registry.create` drops an argument that a part of the user lacks, in
  # silence. Every config has a learning rate, and a run must use the number.
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
  # The learning rate after `num_steps` steps is learning_rate · decay.
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
"""Transformations of the update of `sgd`, by name."""

SCHEDULES = {
  'constant': _constant,
  'cosine': _cosine,
  'exponential': _exponential,
}
"""Schedules by name: functions of `learning_rate` and `num_steps`."""
