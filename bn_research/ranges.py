"""Checks of the ranges of numbers in a config."""

import math


def non_negative(**values: float) -> None:
  """Checks that numbers are in [0, inf).

  Args:
    **values: The numbers by name.

  Raises:
    ValueError: If a number is negative, infinite or NaN.
  """
  for name, value in values.items():
    # Every comparison with NaN is False, so the negated form refuses NaN too.
    if not 0 <= value < math.inf:
      _refuse(name, value, 'a finite number of at least 0')


def positive(**values: float) -> None:
  """Checks that numbers are in (0, inf).

  Args:
    **values: The numbers by name.

  Raises:
    ValueError: If a number is zero, negative, infinite or NaN.
  """
  for name, value in values.items():
    if not 0 < value < math.inf:
      _refuse(name, value, 'a finite number above 0')


def weight_of_old(**values: float) -> None:
  """Checks that weights of an old value, as in a running mean, are in [0, 1).

  Args:
    **values: The weights by name.

  Raises:
    ValueError: If a weight is negative, at least 1, or NaN.
  """
  for name, value in values.items():
    if not 0 <= value < 1:
      _refuse(name, value, 'a number in [0, 1)')


def whole(least: int, most: int, **values: int) -> None:
  """Checks that numbers are of type int and in [least, most].

  Args:
    least: The smallest number allowed.
    most: The largest number allowed.
    **values: The numbers by name.

  Raises:
    ValueError: If a number is out of range, or not of type int.
  """
  for name, value in values.items():
    # `isinstance` would accept True and False, because bool is a subclass.
    if type(value) is not int or not least <= value <= most:
      _refuse(name, value, f'a whole number from {least} to {most:,}')


def _refuse(name: str, value: float, choice: str) -> None:
  """Raises the error for a number out of range."""
  raise ValueError(f'{name}={value!r}; choose {choice}')
