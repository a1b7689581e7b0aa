"""Creates the optax transformation of the optimizer in a config."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from bn_research import errors, registry
from bn_research.optim import (
  chain,
  durations,
  of_optax,
  optimizers,
  rates,
  signatures,
)

OPTIMIZERS = {
  'sgd': optimizers.sgd,
  'adam': optimizers.adam,
  'adamw': optimizers.adamw,
  'rmsprop': optimizers.rmsprop,
}
"""Optimizers by name, as functions of a learning rate or of a schedule."""


def create(
  config: Mapping[str, Any],
  num_steps: int,
  steps_per_epoch: float | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Creates the optimizer of a config.

  Args:
    config: The section `config.optimizer`, with `name`, `learning_rate` and the
      options of the optimizer. The optional `schedule` holds the `name` and the
      options of a learning rate schedule, with a warm-up; the default is a
      constant learning rate. The optional `clip`, `weight_decay`, `decay_mask`
      and `average` are the parts of every optimizer. The optimizer `sgd` has
      the option `precondition`, which holds the `name` `none`, or the `name`
      `input_covariance` and the options of
      `preconditioning.precondition_by_input_covariance`. The preconditioner
      multiplies the momentum of raw gradients. An option with the value None
      keeps the default.
    num_steps: The length of the run, in steps.
    steps_per_epoch: The number of training examples over the batch size, not
      rounded. None refuses durations in epochs.

  Returns:
    An optax gradient transformation, whose `update` accepts extra arguments.

  Raises:
    UserError: If a name or an option is unknown, if a number is out of range,
      or if a part of the user has no argument `learning_rate`.
  """
  options = dict(config)
  clock = durations.Clock(num_steps, steps_per_epoch)
  learning_rate = rates.create(
    options.pop('schedule', None), options.pop('learning_rate'), clock
  )
  name, options = registry.split(options)
  factory = _find(name)
  signatures.require_rate(chain.WHERE, factory, name)
  optimizer = registry.call(
    chain.WHERE,
    chain.around(factory, name),
    name,
    options,
    learning_rate=learning_rate,
  )
  return optax.with_extra_args_support(optimizer)


def of_run(
  config: Mapping[str, Any], num_examples: int
) -> optax.GradientTransformationExtraArgs:
  """Creates the optimizer of a run; see `create`.

  Args:
    config: The resolved config of the run.
    num_examples: The number of training examples.
  """
  steps_per_epoch = num_examples / config['batch_size']
  return create(config['optimizer'], config['num_steps'], steps_per_epoch)


def _find(name: Any) -> Callable[..., Any]:
  """Returns the factory of an optimizer; ours goes before one of optax."""
  if name in OPTIMIZERS or name is None or ':' in str(name):
    return registry.find(chain.WHERE, OPTIMIZERS, name)
  if name in of_optax.names():
    return of_optax.factory(name)
  hint = registry.hint(name, [*OPTIMIZERS, *of_optax.names()])
  raise errors.UserError(
    f'{chain.WHERE}={name!r} is unknown{hint}; there are'
    f' {", ".join(sorted(OPTIMIZERS))}, the optimizers of optax by name, and'
    ' module:attribute for your own'
  )
