"""The steps after which a run is measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bn_research import errors


def points(num_steps: int, num_points: int, spacing: str) -> np.ndarray:
  """Returns the steps of measurements at equal distances or equal ratios.

  Args:
    num_steps: Number of steps of the run.
    num_points: Number of measurements after the measurement at step 0.
    spacing: `'linear'` for a distance of num_steps / num_points steps; `'log'`
      for equal ratios between step 1 and `num_steps`. Measurements at the same
      step, after rounding, are merged.

  Returns:
    Increasing steps, int64 (k,). The first step is 0, and the last step is
    `num_steps`.

  Raises:
    UserError: If the spacing is unknown.
  """
  if spacing == 'linear':
    steps = np.linspace(0, num_steps, num_points + 1)
  elif spacing == 'log':
    steps = np.geomspace(1, num_steps, num_points)
  else:
    raise errors.UserError(f'unknown spacing {spacing!r}; use linear or log')
  # `geomspace` does not contain 0, and a single point is only step 1.
  ends = [0, num_steps]
  return np.union1d(np.rint(steps).astype(np.int64), ends)


def measured(
  num_steps: int, section: Mapping[str, Any], lengths: Sequence[int] = ()
) -> np.ndarray:
  """Returns the steps of the measurements of `config.eval` or of a probe.

  Args:
    num_steps: Number of steps of the run.
    section: `config.eval` or the section of a probe, with `num_points` and
      `spacing`.
    lengths: Earlier numbers of steps of an extended run, increasing. The steps
      up to an earlier length are the steps of a run of this length.

  Returns:
    Increasing steps, int64 (k,), from 0 to `num_steps`.
  """
  # An extended run keeps the earlier measurements, hence also the steps of the
  # earlier measurements.
  parts, start = [np.zeros(1, np.int64)], 0
  for length in (*lengths, num_steps):
    steps = points(length, section['num_points'], section['spacing'])
    parts.append(steps[steps > start])
    start = length
  return np.concatenate(parts)
