"""Schedules of the learning rate by name, over the length of a run."""

from collections.abc import Sequence
from typing import Literal

import optax

from bn_research import ranges
from bn_research.optim.durations import Clock, Duration


def constant(learning_rate: float) -> float:
  """A constant learning rate.

  Args:
    learning_rate: The learning rate.

  Returns:
    The learning rate.

  Raises:
    ValueError: If the learning rate is negative or not finite.
  """
  ranges.non_negative(learning_rate=learning_rate)
  return learning_rate


def step(
  learning_rate: float,
  clock: Clock,
  boundaries: Sequence[Duration],
  factor: float = 0.1,
) -> optax.Schedule:
  """A learning rate that falls by a factor at each boundary.

    rate(t) = learning_rate · factor^(number of boundaries b with b <= t)

  Args:
    learning_rate: The learning rate before the first boundary.
    clock: The lengths of the run and of the warm-up.
    boundaries: Increasing durations from the start of the run, which contains
      the warm-up: numbers of steps, or texts such as '80 epochs' or '50%'.
    factor: The factor of each boundary.

  Returns:
    The function from the step after the warm-up to the learning rate.

  Raises:
    ValueError: If a number is negative or not finite, or if the boundaries do
      not increase within the run.

  Source: He et al. (2016), Section 4.2, with two boundaries.
  """
  ranges.non_negative(learning_rate=learning_rate, factor=factor)
  if isinstance(boundaries, str) or not boundaries:
    raise ValueError(
      f"boundaries={boundaries!r}; give a list, such as ('50%', '75%')"
    )
  steps = [clock.steps_of_schedule('boundaries', each) for each in boundaries]
  if sorted(set(steps)) != steps:
    raise ValueError(f'boundaries={boundaries!r} do not increase')
  return optax.piecewise_constant_schedule(
    learning_rate, dict.fromkeys(steps, factor)
  )


def linear(
  learning_rate: float, num_steps: int, alpha: float = 0.0
) -> optax.Schedule:
  """A straight line from the learning rate to a part of it.

    rate(t) = learning_rate (1 - (1 - alpha) t / num_steps)

  Args:
    learning_rate: The learning rate of step 0.
    num_steps: The length of the schedule, in steps.
    alpha: The learning rate at the end, in units of `learning_rate`.

  Returns:
    The function from the step to the learning rate.

  Raises:
    ValueError: If a number is negative or not finite.
  """
  ranges.non_negative(learning_rate=learning_rate, alpha=alpha)
  return optax.linear_schedule(learning_rate, alpha * learning_rate, num_steps)


def cosine(
  learning_rate: float, num_steps: int, alpha: float = 0.0
) -> optax.Schedule:
  """Half a period of a cosine, from the learning rate to a part of it.

    rate(t) = learning_rate (alpha + (1 - alpha) (1 + cos(π t / num_steps)) / 2)

  Args:
    learning_rate: The learning rate of step 0.
    num_steps: The length of the schedule, in steps.
    alpha: The learning rate at the end, in units of `learning_rate`.

  Returns:
    The function from the step to the learning rate.

  Raises:
    ValueError: If a number is negative or not finite.

  Source: Loshchilov and Hutter (2017), "SGDR", without restarts.
  """
  ranges.non_negative(learning_rate=learning_rate, alpha=alpha)
  return optax.cosine_decay_schedule(learning_rate, num_steps, alpha)


def exponential(
  learning_rate: float, num_steps: int, decay: float = 0.01
) -> optax.Schedule:
  """A learning rate that falls by a constant factor in each step.

    rate(t) = learning_rate · decay^(t / num_steps)

  Args:
    learning_rate: The learning rate of step 0.
    num_steps: The length of the schedule, in steps.
    decay: The learning rate at the end, in units of `learning_rate`.

  Returns:
    The function from the step to the learning rate.

  Raises:
    ValueError: If the learning rate is negative, or if `decay` is not positive.
  """
  ranges.non_negative(learning_rate=learning_rate)
  ranges.positive(decay=decay)
  return optax.exponential_decay(learning_rate, num_steps, decay)


def one_cycle(
  learning_rate: float,
  num_steps: int,
  clock: Clock,
  peak: Duration = '30%',
  initial: float = 0.04,
  alpha: float = 0.0,
  descent: Literal['linear', 'cosine'] = 'linear',
) -> optax.Schedule:
  """A straight line up to the learning rate, and a descent to the end.

    rate(t) = learning_rate (initial + (1 - initial) t / p)          for t < p,
    rate(t) = learning_rate (alpha + (1 - alpha) f(u))               for t >= p,
    u = (t - p) / (num_steps - p),    f(u) = 1 - u  or  (1 + cos(π u)) / 2

  Args:
    learning_rate: The learning rate of step p, the largest.
    num_steps: The length of the schedule, in steps.
    clock: The lengths of the run and of the warm-up.
    peak: p, a duration from the start of the run: a number of steps, or a text
      such as '5 epochs' or '30%'.
    initial: The learning rate of step 0, in units of `learning_rate`.
    alpha: The learning rate at the end, in units of `learning_rate`.
    descent: f, `linear` or `cosine`.

  Returns:
    The function from the step to the learning rate.

  Raises:
    ValueError: If a number is negative or not finite, if the peak is not inside
      of the schedule, or if the descent is unknown.

  Source: Smith (2018), "A disciplined approach to neural network
  hyper-parameters", Section 4.1, as one cycle that goes down to the end.
  """
  ranges.non_negative(learning_rate=learning_rate, initial=initial, alpha=alpha)
  descents = {'linear': linear, 'cosine': cosine}
  if descent not in descents:
    raise ValueError(f'descent={descent!r}; choose linear or cosine')
  rise = clock.steps_of_schedule('peak', peak)
  if rise >= num_steps:
    raise ValueError(f'peak={peak!r} is the end of the run; choose less')
  up = optax.linear_schedule(initial * learning_rate, learning_rate, rise)
  down = descents[descent](learning_rate, num_steps - rise, alpha)
  return optax.join_schedules([up, down], [rise])
