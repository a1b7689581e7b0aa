"""Which steps are measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bn_research import errors


def points(num_steps: int, num_points: int, spacing: str) -> np.ndarray:
  """Spreads measurements over a run.

  Args:
    num_steps: The length of the run.
    num_points: How many measurements, beside the one before the first step.
    spacing: `'linear'`, every num_steps / num_points steps; or `'log'`, equal
      ratios from step 1 on, where those that fall on the same step are one.

  Returns:
    Increasing int64 steps; 0 is the first and `num_steps` the last.

  Raises:
    UserError: If the spacing is unknown.
  """
  if spacing == 'linear':
    steps = np.linspace(0, num_steps, num_points + 1)
  elif spacing == 'log':
    steps = np.geomspace(1, num_steps, num_points)
  else:
    raise errors.UserError(f'unknown spacing {spacing!r}; use linear or log')
  ends = [0, num_steps]
  return np.union1d(np.rint(steps).astype(np.int64), ends)


def measured(
  num_steps: int, section: Mapping[str, Any], lengths: Sequence[int] = ()
) -> np.ndarray:
  """Returns the steps of `config.eval`, or of the section of a probe.

  Args:
    num_steps: The length of the run.
    section: `num_points` and `spacing`.
    lengths: Increasing earlier lengths, if the run was extended. Up to each of
      them the run was measured as a run of this length.
  """
  parts, start = [np.zeros(1, np.int64)], 0
  for length in (*lengths, num_steps):
    steps = points(length, section['num_points'], section['spacing'])
    parts.append(steps[steps > start])
    start = length
  return np.concatenate(parts)
