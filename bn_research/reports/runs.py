"""The runs below a directory, as a report reads them."""

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bn_research import errors, results, workdir
from bn_research.results import Run


def load(directory: str) -> list[Run]:
  """Reads the runs below a directory that came to an end.

  Args:
    directory: The workdir of a sweep, or of one run.

  Returns:
    The runs that are done or diverged, in the order of their paths. Others are
    left out, and that is printed.

  Raises:
    UserError: If none is done.
  """
  paths = collections.defaultdict(list)
  for path in results.workdirs(directory):
    paths[workdir.read_status(path).status].append(path)
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
  """Chooses the runs of an experiment, whatever their seeds.

  Args:
    runs: Runs.
    points: The configs of the experiment's runs.
    swept: The keys, dotted, that tell these runs apart.

  Returns:
    The runs whose configs are among the points. Those that differ from them in
    swept keys alone are left out, and that is printed.

  Raises:
    UserError: If a run differs in another key, or none is left.
  """
  kept, others = [], []
  for run in runs:
    differing = _from_nearest(run, points)
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


def _from_nearest(
  run: Run, points: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
  """Compares a run with the point that it has most in common with."""
  here = ({**point, 'seed': run.config.get('seed')} for point in points)
  return min((workdir.differences(run.config, p) for p in here), key=len)


def _another_config(run: Run, text: str) -> errors.UserError:
  return errors.UserError(
    f'{run.path} holds a run of another config ({text}); give the --config that'
    ' it was trained with, and each --config.KEY=VALUE, or another --workdir'
  )
