"""Creates the optax transformation of the optimizer in a config."""

from collections.abc import Mapping
from typing import Any

import optax

from bn_research import errors, registry
from bn_research.optim import optimizers, schedules


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


OPTIMIZERS = {
  'sgd': optimizers.sgd,
  'adam': optimizers.adam,
  'adamw': optimizers.adamw,
  'rmsprop': optimizers.rmsprop,
}
"""Optimizers by name, as functions of a learning rate or of a schedule."""

SCHEDULES = {
  'constant': schedules.constant,
  'cosine': schedules.cosine,
  'exponential': schedules.exponential,
}
"""Schedules by name, as functions of `learning_rate` and `num_steps`."""
