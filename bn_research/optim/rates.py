"""Creates the learning rate of a run: a schedule, after a warm-up."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bn_research import errors, ranges, registry
from bn_research.optim import schedules, signatures
from bn_research.optim.durations import Clock, Duration

WHERE = 'config.optimizer.schedule'

SCHEDULES = {
  'constant': schedules.constant,
  'step': schedules.step,
  'linear': schedules.linear,
  'cosine': schedules.cosine,
  'exponential': schedules.exponential,
  'one_cycle': schedules.one_cycle,
}
"""Schedules by name, as functions of `learning_rate`, `num_steps`, `clock`."""


def create(
  section: Any, learning_rate: float, clock: Clock
) -> optax.ScalarOrSchedule:
  """Creates the learning rate of a config, a number or a function of the step.

  Args:
    section: `config.optimizer.schedule`: None, a name, or a dict. The keys
      `warmup` and `warmup_from` belong to every schedule, except for a schedule
      of the user with an option of this name. A missing `name` is `constant`.
    learning_rate: `config.optimizer.learning_rate`.
    clock: The length of the run. A schedule gets the number of the steps after
      the warm-up as `num_steps`.

  Raises:
    UserError: If a name or an option is unknown, if a number is out of range,
      or if a schedule of the user has no argument `learning_rate`.
  """
  name, options = registry.split(section)
  name = 'constant' if name is None else name
  factory = registry.find(WHERE, SCHEDULES, name)
  signatures.require_rate(WHERE, factory, name)
  own = registry.parameters_of(WHERE, factory, name)

  def build(learning_rate: float, **options: Any) -> optax.ScalarOrSchedule:
    given = signatures.popped(options, own, warm_up)
    steps, start = warm_up(clock, **given)
    lengths: dict[str, Any] = {}
    if registry.takes(own, 'num_steps'):
      lengths['num_steps'] = clock.num_steps - steps
    # A function with `**options` passes all options on, and knows no clock.
    if 'clock' in own:
      lengths['clock'] = clock._replace(warmup=steps)
    rate = factory(learning_rate=learning_rate, **options, **lengths)
    if not callable(rate) and not isinstance(rate, int | float):
      raise errors.UserError(
        f'{WHERE} returned {rate!r}; return a number, or a schedule of optax'
      )
    return warmed_up(rate, steps, start)

  hidden = ('num_steps', 'clock')
  signature = signatures.joined(own, warm_up, hidden)
  build.__signature__ = signature  # type: ignore[attr-defined]
  return registry.call(WHERE, build, name, options, learning_rate=learning_rate)


def warm_up(
  clock: Clock, *, warmup: Duration = 0, warmup_from: float = 0.0
) -> tuple[int, float]:
  """Returns the steps of the warm-up, and where the warm-up begins.

  Args:
    clock: The length of the run.
    warmup: The duration of the warm-up, below the length of the run.
    warmup_from: The part of the learning rate at step 0.

  Raises:
    ValueError: If a number is out of range, or if `warmup_from` has no effect.
  """
  ranges.non_negative(warmup_from=warmup_from)
  steps = clock.steps('warmup', warmup)
  if steps == clock.num_steps:
    raise ValueError(f'warmup={warmup!r} is the whole run; choose less')
  if warmup_from and not steps:
    raise ValueError(f'warmup_from={warmup_from} needs a warmup above 0')
  return steps, warmup_from


def warmed_up(
  rate: optax.ScalarOrSchedule, steps: int, start: float
) -> optax.ScalarOrSchedule:
  """Returns a learning rate with a warm-up before the schedule.

    rate(t) = schedule(0) (start + (1 - start) t / steps)    for t < steps
    rate(t) = schedule(t - steps)                            for t >= steps

  Args:
    rate: The learning rate, or a schedule, which counts from the end of the
      warm-up.
    steps: The duration of the warm-up. 0 returns the learning rate unchanged.
    start: The part of the learning rate at step 0.

  Source: Goyal et al. (2017), Section 2.2, gradual warm-up.
  """
  if not steps:
    return rate
  after = rate if callable(rate) else optax.constant_schedule(rate)

  def warm(step: jax.Array) -> jax.Array:
    part = start + (1 - start) * jnp.minimum(step / steps, 1)
    # A schedule may have no value before step 0.
    return part * after(jnp.maximum(step - steps, 0))

  return warm
