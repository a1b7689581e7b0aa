"""Which steps are measured."""

from collections.abc import Mapping
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


def measured(num_steps: int, section: Mapping[str, Any]) -> np.ndarray:
  """Returns the steps of `config.eval`, or of the section of a probe."""
  return points(num_steps, section['num_points'], section['spacing'])
