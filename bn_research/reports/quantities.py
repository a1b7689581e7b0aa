"""A quantity of a run over its steps: a metric, or an array of a probe."""

import numpy as np

from bn_research import errors
from bn_research.results import Run


def series(
  run: Run,
  metric: str | None = None,
  probe: str | None = None,
  array: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns steps, and the numbers of a quantity at these steps.

  Args:
    run: The run.
    metric: A column of `metrics.jsonl`; or None.
    probe: The key of a probe, if there is no metric.
    array: The name of an array of the probe: (k,), one number a step.

  Raises:
    UserError: If neither or both are given, if the run lacks the quantity, or
      if the array has more than one number a step.
  """
  if (metric is None) == (probe is None or array is None):
    raise errors.UserError(
      f'report(): metric={metric!r}, probe={probe!r} and array={array!r}; give'
      ' a metric, or a probe and an array'
    )
  if metric is not None:
    steps, values = run.columns('step', metric)
    return steps, values
  steps, values = run.probe(str(probe), str(array))
  if values.ndim != 1:
    raise errors.UserError(
      f'report(): the array {array!r} of the probe {probe!r} has the shape'
      f' {values.shape[1:]} at each step; choose an array of one number'
    )
  return steps, values
