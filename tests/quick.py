"""Which combinations of parameters are tested in the quick suite."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def star(*choices: Iterable[Any]) -> list[Any]:
  """Returns every combination of the choices; most are marked slow.

  Quick are the combinations that differ in one place at most from the first: a
  fault of one choice is then found, and a fault of a pair in the slow suite.
  """
  choices = tuple(map(tuple, choices))
  rows = []
  for combination in itertools.product(*choices):
    pairs = zip(combination, choices, strict=True)
    changed = sum(value is not chosen[0] for value, chosen in pairs)
    marks = [pytest.mark.slow] * (changed > 1)
    rows.append(pytest.param(*combination, marks=marks))
  return rows


def some(quick: Iterable[Any], every: Iterable[Any]) -> list[Any]:
  """Returns rows: the quick rows, and the rest of all rows, marked slow.

  Args:
    quick: Values of a parameter, or tuples for several parameters.
    every: All values, or the remaining values.
  """
  quick, rows = list(quick), []
  for row in every:
    if row not in quick:
      several = row if isinstance(row, tuple) else (row,)
      rows.append(pytest.param(*several, marks=pytest.mark.slow))
  return [*quick, *rows]
