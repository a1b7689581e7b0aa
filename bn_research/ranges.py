"""Numbers of a config, held against the range in which they mean something."""

import math

from bn_research import errors


def non_negative(where: str, **values: float) -> None:
  """Checks numbers in [0, inf).

  Args:
    where: The part of the config, for messages: `'optimizer'`.
    **values: The numbers by name.

  Raises:
    UserError: If one is negative, infinite or NaN.
  """
  for name, value in values.items():
    if not 0 <= value < math.inf:
      _refuse(where, name, value, 'a finite number of at least 0')


def positive(where: str, **values: float) -> None:
  """Checks numbers in (0, inf), as `non_negative` does."""
  for name, value in values.items():
    if not 0 < value < math.inf:
      _refuse(where, name, value, 'a finite number above 0')


def weight_of_old(where: str, **values: float) -> None:
  """Checks numbers in [0, 1), as `non_negative` does."""
  for name, value in values.items():
    if not 0 <= value < 1:
      _refuse(where, name, value, 'a number in [0, 1)')


def _refuse(where: str, name: str, value: float, choice: str) -> None:
  raise errors.UserError(f'{where}.{name}={value}; choose {choice}')
