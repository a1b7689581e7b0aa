"""What a claim measures of one run: a number.

A measure is a function of a run and of options that the config gives.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bn_research import errors, registry
from bn_research.reports.quantities import series
from bn_research.results import Run


def measure(section: Mapping[str, Any], run: Run) -> float:
  """Returns a number of a run.

  Args:
    section: `name`, a key of `MEASURES` or `module:attribute`, and options.
    run: The run.

  Raises:
    UserError: If the name or an option is unknown, if the run lacks what is
      measured, or if the result is no number.
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
  """Returns the last value of a metric, or of an array of a probe."""
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

  Of two runs that end alike, the faster one has more of it.

  Args:
    run: The run.
    metric: A metric; each of its measurements counts the same.
    part: Up to which part of the steps, in (0, 1].
    probe: The key of a probe, if there is no metric.
    array: The name of an array of the probe.
  """
  steps, values = series(run, metric, probe, array)
  return float(values[steps <= part * steps[-1]].mean())


def drift(run: Run, probe: str, array: str) -> float:
  """Returns how far a distribution moves while the run trains.

    √(mean over percentiles p of Var_t p(t))

  Both a shift and a change of width count; a distribution that stands still
  has 0.

  Args:
    run: The run.
    probe: The name of the probe.
    array: Which of its arrays: (k, q), q percentiles at k steps.
  """
  _, values = run.probe(probe, array)
  return float(values.var(0).mean() ** 0.5)


def milliseconds_a_step(run: Run) -> float:
  """Returns what a training step took; the evaluations are in it.

  The median over the stretches from one evaluation to the next, but for the
  first: what else a computer does meanwhile slows some of them down.
  """
  steps, seconds = run.columns('step', 'seconds')
  rates = np.diff(seconds) / np.diff(steps)
  return float(1000 * np.median(rates[1:] if len(rates) > 1 else rates))


def milliseconds_a_layer(run: Run) -> float:
  """Returns the part of a training step that falls to one hidden layer.

    step / number of hidden layers

  It has a meaning as a difference: of two networks that differ in nothing but
  what each hidden layer does, it is what that takes a layer.

  Raises:
    UserError: If the config has no `model.widths`, one number a hidden layer.
  """
  return milliseconds_a_step(run) / len(run.value('model.widths'))


MEASURES: dict[str, Callable[..., float]] = {
  'final': final,
  'early': early,
  'drift': drift,
  'milliseconds_a_layer': milliseconds_a_layer,
  'milliseconds_a_step': milliseconds_a_step,
}
