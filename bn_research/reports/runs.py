"""Selects the runs of a report from the workdirs below a directory."""

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from bn_research import comparison, dotted, errors, results, workdir
from bn_research.results import Run

MISSING = 'missing'
UNREADABLE = 'unreadable'


class Absent(NamedTuple):
  """A planned run without numbers.

  Attributes:
    config: The config of the run, by dotted key.
    reason: `MISSING` if the run is neither done nor diverged, or `UNREADABLE`
      if a file of the run is damaged.
  """

  config: Mapping[str, Any]
  reason: str


def load(directory: str) -> list[Run]:
  """Reads the finished runs below a directory: done or diverged.

  Prints the paths of the remaining runs, which are left out.

  Args:
    directory: The workdir of a sweep, or of a single run.

  Returns:
    The runs that are done or diverged, in the order of the paths.

  Raises:
    UserError: If no run is done.
  """
  paths = collections.defaultdict(list)
  for path in results.workdirs(directory):
    try:
      paths[results.load(path).status.status].append(path)
    except errors.UserError as error:
      print(f'left out, because unreadable: {error}')
  # The status may also be a text that this version does not know.
  for status in sorted(paths.keys() - {workdir.DONE, workdir.DIVERGED}):
    for path in paths[status]:
      print(f'left out, because {status}: {path}')
  if not paths[workdir.DONE]:
    raise errors.UserError(
      f'{directory} has no run that is done; go on with the command that trains'
    )
  return [
    results.load(path)
    for path in sorted(paths[workdir.DONE] + paths[workdir.DIVERGED])
  ]


def of_experiment(
  runs: Sequence[Run],
  points: Sequence[Mapping[str, Any]],
  swept: Collection[str],
) -> list[Run]:
  """Selects the runs of an experiment, with any seed.

  Prints the paths of runs that differ from the experiment only in swept keys.
  These runs are left out.

  Args:
    runs: The runs below the workdir of the experiment.
    points: The configs of the runs in the experiment.
    swept: The dotted keys in which these configs differ.

  Returns:
    The runs whose configs, except for the seed, are among `points`.

  Raises:
    UserError: If a run differs from the experiment in a key that is not swept,
      or if no run is left.
  """
  kept, others = [], []
  for run in runs:
    differing = _from_nearest(run, points)
    # A sweep may shrink after some runs were trained, hence a different value
    # of a swept key is no error. A difference in a further key means that the
    # command line does not describe the run.
    foreign = [text for key, text in differing.items() if key not in swept]
    if foreign:
      raise _another_config(run, foreign[0])
    if differing:
      others.append((run, next(iter(differing.values()))))
    else:
      kept.append(run)
  if not kept:
    raise _another_config(*others[0])
  for run, text in others:
    print(f'left out, because not in sweep(): {run.path} ({text})')
  return kept


def without_copies(found: Sequence[Run]) -> list[Run]:
  """Returns a single run of each config; says which runs are left out.

  A copy of a folder would count as a further seed in a curve. Of several runs
  of a config, a run that is done is kept, and otherwise the first run.

  Args:
    found: The readable runs that are done or diverged.

  Returns:
    The runs, in the order of the paths.
  """
  kept: list[Run] = []
  for run in sorted(found, key=lambda run: not run.is_done):
    if other := next((o for o in kept if _is_copy(o, run)), None):
      print(f'left out, because {other.path} has the same config: {run.path}')
    else:
      kept.append(run)
  return sorted(kept, key=lambda run: run.path)


def _is_copy(one: Run, other: Run) -> bool:
  """Whether two runs have the same config, in all keys."""
  # A comparison of all keys is slow, and most runs differ in the seed.
  if one.config.get('seed') != other.config.get('seed'):
    return False
  # An experiment may compare keys without influence on the curve, for example
  # `num_devices`.
  return not comparison.differences(one.config, other.config, free=())


def readable(found: Sequence[Run]) -> tuple[list[Run], list[Run]]:
  """Separates the runs with a damaged or lost file, and says which they are.

  Args:
    found: Runs that are done or diverged.

  Returns:
    The readable runs, and the unreadable runs.
  """
  reasons = [_damage(run) for run in found]
  for run, reason in zip(found, reasons, strict=True):
    if reason:
      print(f'left out, because unreadable: {run.path} ({reason})')
  return (
    [run for run, reason in zip(found, reasons, strict=True) if not reason],
    [run for run, reason in zip(found, reasons, strict=True) if reason],
  )


def _damage(run: Run) -> str:
  """Returns why the files of a finished run cannot be used; '' if they can."""
  try:
    # The property raises the error of rows that end too early.
    _ = run.metrics
    status = workdir.standing(run.path, workdir.read_config(run.path))
  except errors.UserError as error:
    return str(error)
  return '' if status.is_over else status.reason


def absent(
  found: Sequence[Run],
  unreadable: Sequence[Run],
  points: Sequence[Mapping[str, Any]],
) -> list[Absent]:
  """Returns the planned runs without numbers, and says how many there are.

  Args:
    found: The readable runs that are done or diverged.
    unreadable: The runs with a damaged or lost file.
    points: The configs of the planned runs.
  """

  def is_among(runs: Sequence[Run], config: Mapping[str, Any]) -> bool:
    return not all(_differences(run, config) for run in runs)

  configs = [dotted.flatten(point) for point in points]
  left = [
    Absent(config, UNREADABLE if is_among(unreadable, config) else MISSING)
    for config in configs
    if not is_among(found, config)
  ]
  counts = collections.Counter(run.reason for run in left)
  for reason, count in counts.items():
    print(f'{reason}: {count} of {len(configs)} runs of sweep()')
  return left


def _from_nearest(
  run: Run, points: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
  """Returns the differences of a run from the most similar point.

  Args:
    run: The run.
    points: The configs of the runs in the experiment.

  Returns:
    For each dotted key with a difference, both values as text.
  """
  # Each point takes the seed of the run, because a seed outside of the sweep is
  # not a different experiment.
  here = ({**point, 'seed': run.config.get('seed')} for point in points)
  return min((_differences(run, point) for point in here), key=len)


def _differences(run: Run, point: Mapping[str, Any]) -> dict[str, str]:
  differing = comparison.differences(run.config, point)
  if run.status.status == workdir.DIVERGED:
    # A run that diverged before the old end also diverges before the new end.
    differing.pop('num_steps', None)
  return differing


def _another_config(run: Run, text: str) -> errors.UserError:
  """Returns the error for a run of a different config."""
  return errors.UserError(
    f'{run.path} holds a run of another config ({text}); give the --config that'
    ' it was trained with, and each --config.KEY=VALUE, or another --workdir'
  )
