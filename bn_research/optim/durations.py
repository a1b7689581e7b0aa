"""Durations in a config: in steps, in epochs, or in parts of the run."""

import re
from typing import NamedTuple

_TEXT = re.compile(r'(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)')
_ADVICE = "choose a whole number of steps, '400 steps', '5 epochs' or '10%'"

Duration = int | str
"""A number of steps, or a text with a number and a unit."""


class Clock(NamedTuple):
  """The lengths that turn a duration into steps.

  Attributes:
    num_steps: The length of the run, in steps.
    steps_per_epoch: The number of training examples over the batch size, not
      rounded; None if no duration is in epochs.
    warmup: The steps before the schedule begins.
  """

  num_steps: int
  steps_per_epoch: float | None = None
  warmup: int = 0

  def steps(self, name: str, duration: Duration) -> int:
    """Returns a duration from the start of the run, in steps.

    Args:
      name: The name of the option, for messages.
      duration: A whole number of steps; or a text with a number and one of the
        units `steps`, `epochs`, and `%` of the run. A result with a fraction is
        rounded to the nearest step.

    Raises:
      ValueError: If the text has no such form, if the number is negative, or
        if the duration is longer than the run.
    """
    steps = self._steps(name, duration)
    if steps > self.num_steps:
      raise ValueError(
        f'{name}={duration!r} is longer than the run of {self.num_steps:,}'
        ' steps; choose less'
      )
    return steps

  def steps_of_schedule(self, name: str, duration: Duration) -> int:
    """Returns a duration in steps after the warm-up.

    Args:
      name: The name of the option, for messages.
      duration: A duration from the start of the run, as for `steps`.

    Raises:
      ValueError: If `steps` raises, or if the warm-up lasts as long.
    """
    steps = self.steps(name, duration) - self.warmup
    if steps < 1:
      raise ValueError(
        f'{name}={duration!r} is not after the start of the schedule, at step'
        f' {self.warmup:,}; choose more'
      )
    return steps

  def _steps(self, name: str, duration: Duration) -> int:
    # `isinstance` would accept True, because bool is a subclass of int.
    if type(duration) is int and duration >= 0:
      return duration
    found = _TEXT.fullmatch(duration) if isinstance(duration, str) else None
    if not found:
      raise ValueError(f'{name}={duration!r}; {_ADVICE}')
    number, unit = float(found[1]), found[2]
    if unit == '%':
      return round(number / 100 * self.num_steps)
    if unit.startswith('epoch'):
      if self.steps_per_epoch is None:
        raise ValueError(f'{name}={duration!r}; an epoch has no length here')
      return round(number * self.steps_per_epoch)
    if not number.is_integer():
      raise ValueError(f'{name}={duration!r}; {_ADVICE}')
    return int(number)
