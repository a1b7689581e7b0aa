"""Asks the samplers and the pruners of Optuna.

Each function makes a study in memory from the trials of the past, asks once,
and drops the study. The random numbers depend on the seed and on the number of
the trial. A suggestion is therefore a function of the past alone, whether or
not the search was interrupted. A sampler must keep nothing but trials: quasi
Monte Carlo and grids of Optuna count in the study, and are left out.
"""

import json
import random
from collections.abc import Sequence
from typing import Any

from bn_research import errors, grid, registry, workdir
from bn_research.sweeps import extras
from bn_research.sweeps.search import settings as settings_lib
from bn_research.sweeps.search import trials

_SAMPLERS = ('RandomSampler', 'TPESampler')
_PRUNERS = (
  *('HyperbandPruner', 'MedianPruner', 'PercentilePruner'),
  *('SuccessiveHalvingPruner', 'ThresholdPruner'),
)
# A trial with the values of an earlier trial would have the same result.
_DRAWS = 100


def check(settings: settings_lib.Settings, past: Sequence[trials.Past]) -> None:
  """Raises a UserError if Optuna refuses the settings, or is not installed."""
  extras.require('optuna', 'search', '--search')
  for trial, *_ in past:
    if trial.parameters.keys() != settings.space.keys() or not all(
      _contains(settings.space[key], value)
      for key, value in trial.parameters.items()
    ):
      raise errors.UserError(
        f'{trial.name} has {dict(trial.parameters)}, which are no values of the'
        ' space of search(); give another --workdir'
      )
  _study(settings, past, settings.seed)


def suggest(
  settings: settings_lib.Settings, past: Sequence[trials.Past], number: int
) -> dict[str, Any] | None:
  """Returns the values of the next trial.

  Args:
    settings: The settings of the search.
    past: The trials so far; also those that train.
    number: The number of the next trial.

  Returns:
    The values by dotted key; None if the sampler finds no new values.
  """
  known = [_text(trial.parameters) for trial, *_ in past]
  for draw in range(_DRAWS):
    # Python keeps the numbers for a seed from version to version.
    stream = random.Random(f'{settings.seed}/{number}/{draw}')
    trial = _study(settings, past, stream.getrandbits(31)).ask()
    values = {k: _value(trial, k, d) for k, d in settings.space.items()}
    if _text(values) not in known:
      return values
  return None


def prunes(
  settings: settings_lib.Settings,
  past: Sequence[trials.Past],
  current: trials.Past,
) -> tuple[bool, dict[str, Any]]:
  """Returns whether a trial that trains shall end early.

  Args:
    settings: The settings of the search.
    past: The other trials.
    current: The trial, with the rows so far.

  Returns:
    The decision, and what the pruner remembers of the trial.
  """
  both = sorted([*past, current], key=lambda one: one.trial.number)
  place = both.index(current)
  study = _study(settings, both, settings.seed)
  decision = study.pruner.prune(study, study.trials[place])
  return bool(decision), dict(study.trials[place].system_attrs)


def _study(
  settings: settings_lib.Settings, past: Sequence[trials.Past], seed: int
) -> Any:
  """Returns a study of Optuna with the trials of the past."""
  import optuna

  optuna.logging.set_verbosity(optuna.logging.ERROR)
  sampler = _part('sampler', optuna.samplers, _SAMPLERS, settings.sampler, seed)
  pruner = _part(
    'pruner', optuna.pruners, _PRUNERS, settings.pruner or 'NopPruner', seed
  )
  study = optuna.create_study(
    direction=settings.direction,
    sampler=sampler,
    pruner=pruner,
    # Hyperband divides the trials by the name of the study.
    study_name='search',
  )
  study.add_trials([_frozen(settings, one) for one in past])
  return study


def _part(
  what: str, module: Any, names: Sequence[str], section: Any, seed: int
) -> Any:
  """Returns a sampler or a pruner, with each mistake in one line."""
  where = f'search(): {what}'
  table = {name: getattr(module, name) for name in names}
  if what == 'pruner' and section == 'NopPruner':
    return module.NopPruner()
  try:
    return registry.create(where, table, section, seed=seed)
  except (ValueError, TypeError, ImportError) as error:
    line = str(error).strip().partition('\n')[0]
    raise errors.UserError(f'{where}: {line}') from error


def _frozen(settings: settings_lib.Settings, past: trials.Past) -> Any:
  """Returns a trial of the past as a trial of Optuna."""
  import optuna

  states = optuna.trial.TrialState
  state, value = states.RUNNING, None
  if past.state == trials.PRUNED:
    state = states.PRUNED
  elif past.state == workdir.DIVERGED:
    # A sampler would ignore a failed trial, and go there again.
    state, value = states.COMPLETE, settings.worst()
  elif past.state == workdir.DONE and past.value is not None:
    state, value = states.COMPLETE, past.value
  elif past.state in (workdir.DONE, workdir.FAILED):
    state = states.FAIL
  return optuna.trial.create_trial(
    state=state,
    value=value,
    params={
      key: _inner(settings.space[key], number)
      for key, number in past.trial.parameters.items()
    },
    distributions={k: _outer(d) for k, d in settings.space.items()},
    intermediate_values=dict(past.rows),
    system_attrs=dict(past.trial.attributes),
  )


def _outer(distribution: grid.Distribution) -> Any:
  """Returns a distribution of `grid` as a distribution of Optuna."""
  import optuna

  if isinstance(distribution, grid.Choice):
    # Optuna stores plain values only, and a value here may be a tuple.
    places = range(len(distribution.values))
    return optuna.distributions.CategoricalDistribution(tuple(places))
  return optuna.distributions.FloatDistribution(
    distribution.low,
    distribution.high,
    log=isinstance(distribution, grid.LogUniform),
  )


def _value(trial: Any, key: str, distribution: grid.Distribution) -> Any:
  """Returns a value that Optuna suggests, as a value of the config."""
  if isinstance(distribution, grid.Choice):
    place = trial.suggest_categorical(key, _outer(distribution).choices)
    return distribution.values[place]
  is_log = isinstance(distribution, grid.LogUniform)
  return distribution.rounded(
    trial.suggest_float(key, distribution.low, distribution.high, log=is_log)
  )


def _inner(distribution: grid.Distribution, value: Any) -> Any:
  """Returns a value of the config as Optuna has the value."""
  if isinstance(distribution, grid.Choice):
    return list(map(_text, distribution.values)).index(_text(value))
  return float(value)


def _contains(distribution: grid.Distribution, value: Any) -> bool:
  if isinstance(distribution, grid.Choice):
    return _text(value) in map(_text, distribution.values)
  is_number = isinstance(value, int | float)
  return is_number and distribution.low <= value <= distribution.high


def _text(value: Any) -> str:
  """Returns a value as text; a file has lists for the tuples of a config."""
  return json.dumps(value, sort_keys=True, default=str)
