"""Quantities of a run over the steps: metrics, and arrays of probes."""

import numpy as np

from bn_research import errors
from bn_research.results import Run


def series(
  run: Run,
  metric: str | None = None,
  probe: str | None = None,
  array: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the steps and the values of a quantity.

  Args:
    run: The run.
    metric: The name of a metric in `metrics.jsonl`, or None. The name of an
      accuracy with `error` in the place of `accuracy`, for example
      `test_error`, stands for 1 - accuracy.
    probe: The key of a probe, if `metric` is None.
    array: The name of an array of the probe: (k,), a number for each of k
      steps.

  Returns:
    The steps (k,), and the values (k,) at these steps.

  Raises:
    UserError: If the arguments name no quantity or two quantities, if the run
      lacks the quantity, or if the array has several numbers for each step.
  """
  given = (metric is not None, probe is not None, array is not None)
  if given not in ((True, False, False), (False, True, True)):
    raise errors.UserError(
      f'report(): metric={metric!r}, probe={probe!r} and array={array!r}; give'
      ' a metric, or a probe and an array'
    )
  if metric is not None:
    is_error = metric.endswith('_error')
    name = metric.removesuffix('error') + 'accuracy' if is_error else metric
    steps, values = run.columns('step', name)
    return steps, 1 - values if is_error else values
  steps, values = run.probe(str(probe), str(array))
  if len(values) != len(steps):
    raise errors.UserError(
      f'report(): the array {array!r} of the probe {probe!r} is a constant;'
      ' choose an array with a number for each step'
    )
  if values.ndim != 1:
    raise errors.UserError(
      f'report(): the array {array!r} of the probe {probe!r} has the shape'
      f' {values.shape[1:]} at each step; choose an array of one number'
    )
  return steps, values
