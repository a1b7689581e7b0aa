"""Schedules of the learning rate by name, over the length of a run."""

import optax

from bn_research import ranges


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


def cosine(
  learning_rate: float, num_steps: int, alpha: float = 0.0
) -> optax.Schedule:
  """Half a period of a cosine, from the learning rate to a part of it.

    rate(t) = learning_rate (alpha + (1 - alpha) (1 + cos(π t / num_steps)) / 2)

  Args:
    learning_rate: The learning rate of step 0.
    num_steps: The length of the run, in steps.
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
    num_steps: The length of the run, in steps.
    decay: The learning rate at the end, in units of `learning_rate`.

  Returns:
    The function from the step to the learning rate.

  Raises:
    ValueError: If the learning rate is negative, or if `decay` is not positive.
  """
  ranges.non_negative(learning_rate=learning_rate)
  ranges.positive(decay=decay)
  return optax.exponential_decay(learning_rate, num_steps, decay)
