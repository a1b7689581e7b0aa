"""Measures, which are functions from a run to a number.

A measure is a function of a run and of options from the config. Claims and
panels use measures.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bn_research import errors, registry
from bn_research.reports.quantities import series
from bn_research.results import Run


def measure(section: Mapping[str, Any], run: Run) -> float:
  """Returns the value of a measure for a run.

  Args:
    section: A dict with `name`, which is a key of `MEASURES` or
      `module:attribute`, and the options of the measure.
    run: The run.

  Raises:
    UserError: If the name or an option is unknown, if the run lacks the
      measured quantity, or if the result is not a number.
  """
  value = registry.create('report(): measure', MEASURES, section, run=run)
  try:
    return float(value)
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f'report(): the measure {section["name"]!r} returned {value!r}; return a'
      ' number'
    ) from error


def final(
  run: Run,
  metric: str | None = None,
  probe: str | None = None,
  array: str | None = None,
) -> float:
  """Returns the last value of a metric, or of an array of a probe.

  Args:
    run: The run.
    metric: The name of a metric, or None.
    probe: The key of a probe, if `metric` is None.
    array: The name of an array of the probe.
  """
  _, values = series(run, metric, probe, array)
  return float(values[-1])


def early(
  run: Run,
  metric: str | None = None,
  part: float = 0.2,
  probe: str | None = None,
  array: str | None = None,
) -> float:
  """Returns the mean of a quantity over the first part of a run.

  If two runs end with the same accuracy, the run with the faster training has
  the larger mean accuracy. Each measurement has the same weight in the mean.

  Args:
    run: The run.
    metric: The name of a metric, or None.
    part: The first part of the steps, as a fraction in (0, 1].
    probe: The key of a probe, if `metric` is None.
    array: The name of an array of the probe.

  Raises:
    ValueError: If `part` is not in (0, 1].
  """
  if not 0 < part <= 1:
    raise ValueError(f'part={part}; choose a fraction in (0, 1]')
  steps, values = series(run, metric, probe, array)
  return float(values[steps <= part * steps[-1]].mean())


def best(run: Run, metric: str) -> float:
  """Returns the largest value of a metric in a run.

  The largest of many measurements on a test split is too high: the choice of
  the measurement is a choice on this split. Papers print this number.

  Args:
    run: The run.
    metric: The name of a metric, for example `test_accuracy`.
  """
  _, values = series(run, metric)
  return float(values.max())


def reach(run: Run, metric: str, level: float) -> float:
  """Returns the first measured step with a metric of at least a level.

  Args:
    run: The run.
    metric: The name of a metric, for example `test_accuracy`.
    level: The level to reach.

  Returns:
    The number of steps, or NaN for a run that never reaches the level. A claim
    counts a run without a number, and leaves the run out of the comparison.
  """
  steps, values = series(run, metric)
  reached = steps[values >= level]
  return float(reached[0]) if len(reached) else float('nan')


def drift(run: Run, probe: str, array: str) -> float:
  """Returns the drift of a distribution during the training of a run.

    √(mean over percentiles p of Var_t p(t))

  A shift and a change of the width both increase the drift. A constant
  distribution has the drift 0.

  Args:
    run: The run.
    probe: The key of the probe.
    array: The name of an array of the probe: (k, q), q percentiles at k steps.
  """
  _, values = run.probe(probe, array)
  return float(values.var(0).mean() ** 0.5)


def milliseconds_a_step(run: Run) -> float:
  """Returns the time of a training step in milliseconds, with evaluations.

  The result is the median over the intervals between consecutive rows of
  metrics. If the run has several intervals, the first interval is left out.

  Args:
    run: The run.
  """
  steps, seconds = run.columns('step', 'seconds')
  # Further programs on the computer slow down some of the intervals. The median
  # is robust to a few slow intervals.
  rates = np.diff(seconds) / np.diff(steps)
  return float(1000 * np.median(rates[1:] if len(rates) > 1 else rates))


def milliseconds_a_layer(run: Run) -> float:
  """Returns the time of a training step for each hidden layer, in milliseconds.

    step / number of hidden layers

  Only the difference of two results has a meaning. If two networks differ only
  in an operation of the hidden layers, the difference is the time of the
  operation in a layer.

  Args:
    run: A run whose config has `model.widths`, with a number for each hidden
      layer.

  Raises:
    UserError: If the config has no `model.widths`.
  """
  return milliseconds_a_step(run) / len(run.value('model.widths'))


MEASURES: dict[str, Callable[..., float]] = {
  'final': final,
  'early': early,
  'best': best,
  'reach': reach,
  'drift': drift,
  'milliseconds_a_layer': milliseconds_a_layer,
  'milliseconds_a_step': milliseconds_a_step,
}
