"""Selects the runs of a report from the workdirs below a directory."""

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bn_research import comparison, dotted, errors, results, workdir
from bn_research.results import Run


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
    paths[results.load(path).status.status].append(path)
  for status in (workdir.INCOMPLETE, workdir.FAILED):
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


def missing(
  found: Sequence[Run], points: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """Returns the planned runs that are neither done nor diverged, and says so.

  Args:
    found: The runs that are done or diverged.
    points: The configs of the planned runs.

  Returns:
    The configs of the missing runs, by dotted key.
  """
  configs = [dotted.flatten(point) for point in points]
  left = [
    config
    for config in configs
    if all(_differences(run, config) for run in found)
  ]
  if left:
    print(f'missing: {len(left)} of {len(configs)} runs of sweep()')
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
