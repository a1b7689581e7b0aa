"""Numbers of a config, held against the range in which they mean something."""

import math


def non_negative(**values: float) -> None:
  """Checks numbers in [0, inf).

  Args:
    **values: The numbers by name.

  Raises:
    ValueError: If one is negative, infinite or NaN.
  """
  for name, value in values.items():
    if not 0 <= value < math.inf:
      _refuse(name, value, 'a finite number of at least 0')


def positive(**values: float) -> None:
  """Checks numbers in (0, inf), as `non_negative` does."""
  for name, value in values.items():
    if not 0 < value < math.inf:
      _refuse(name, value, 'a finite number above 0')


def weight_of_old(**values: float) -> None:
  """Checks numbers in [0, 1), as `non_negative` does."""
  for name, value in values.items():
    if not 0 <= value < 1:
      _refuse(name, value, 'a number in [0, 1)')


def whole(least: int, most: int, **values: int) -> None:
  """Checks whole numbers from `least` to `most`, as `non_negative` does."""
  for name, value in values.items():
    if type(value) is not int or not least <= value <= most:
      _refuse(name, value, f'a whole number from {least} to {most:,}')


def _refuse(name: str, value: float, choice: str) -> None:
  raise ValueError(f'{name}={value!r}; choose {choice}')
