"""Chooses points of a sweep by flags: other seeds, a name, a share."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bn_research import errors, grid
from bn_research.sweeps.points import Point


def with_seeds(
  sweep: Sequence[Mapping[str, Any]], text: str
) -> list[dict[str, Any]]:
  """Returns the settings of a sweep with other seeds.

  Args:
    sweep: The changes of each run, by dotted key.
    text: `'0:5'` for the seeds 0 to 4.

  Returns:
    Each setting once for each seed, in the order of the sweep.

  Raises:
    UserError: If the text is no range of seeds.
  """
  match = re.fullmatch(r'(\d+):(\d+)', text)
  if match is None:
    raise errors.UserError(f'--seeds={text}; give a range such as 0:5')
  if int(match[1]) >= int(match[2]):
    raise errors.UserError(
      f'--seeds={text} has no seed; the second number is above the last seed'
    )
  try:
    seeds = grid.seeds(int(match[1]), int(match[2]))
  except ValueError as error:
    raise errors.UserError(f'--seeds={text}: {error}') from error
  settings: list[dict[str, Any]] = []
  for changes in sweep:
    setting = {key: value for key, value in changes.items() if key != 'seed'}
    if setting not in settings:
      settings.append(setting)
  return grid.product(settings, seeds)


def only(points: Sequence[Point], pattern: str) -> list[Point]:
  """Returns the points whose names match a pattern, as names of files do.

  Args:
    points: The points of a sweep.
    pattern: A pattern of the whole name; `*` stands for any text.

  Raises:
    UserError: If no name matches.
  """
  found = [p for p in points if fnmatch.fnmatchcase(p.name, pattern)]
  if not found:
    raise errors.UserError(
      f'--only={pattern} matches no run, such as {points[0].name}; * stands for'
      ' any text'
    )
  return found


def shard(points: Sequence[Point], text: str) -> list[Point]:
  """Returns the share of one job of an array of jobs.

  Every n-th point is in a share, because neighbours in a sweep often take the
  same time.

  Args:
    points: The points of a sweep.
    text: `'i/n'` for the job i of n, with 0 as the first job.

  Returns:
    The points of the share, possibly none.

  Raises:
    UserError: If the text is no share.
  """
  match = re.fullmatch(r'(\d+)/(\d+)', text)
  if match is None or int(match[1]) >= int(match[2]):
    raise errors.UserError(
      f'--shard={text}; give i/n with i from 0 to n - 1, such as 0/8'
    )
  return list(points[int(match[1]) :: int(match[2])])
