"""The points of a sweep: names, workdirs and command lines."""

import copy
import dataclasses
import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from bn_research import dotted, errors, overrides
from bn_research import workdir as workdir_lib

_LONGEST_NAME = 120


@dataclasses.dataclass(frozen=True)
class Point:
  """One run of a sweep.

  Attributes:
    name: A readable name made from the overrides; a file name, too.
    workdir: Where the run writes.
    command: The command line that trains it.
    config: Its config, as `config.json` would hold it.
  """

  name: str
  workdir: pathlib.Path
  command: tuple[str, ...]
  config: Mapping[str, Any] = dataclasses.field(hash=False)

  def read_status(self) -> workdir_lib.Status:
    """Reads where the run stands on its way to the length in its config."""
    status = workdir_lib.read_status(self.workdir)
    return status.towards(self.config['num_steps'])


def expand(
  sweep: Sequence[Mapping[str, Any]],
  config: ml_collections.ConfigDict,
  path: str,
  directory: str,
  given: Mapping[str, Any],
  flags: Sequence[str] = (),
) -> list[Point]:
  """Turns the overrides of a sweep into runs, and checks each of them.

  Args:
    sweep: One flat dict of overrides a run, as `sweep()` of a config gives it.
    config: The config with `given` in it.
    path: The experiment as it was typed: `path.py` or `path.py:argument`.
    directory: The workdir of the sweep; that of a run is below it.
    given: What was overridden on the command line; applies to every run.
    flags: Further flags for every run.

  Raises:
    UserError: If an override names no key or is of the wrong type, if a swept
      key was overridden, if two runs are the same, or if a workdir holds a run
      of another config.
  """
  points = {}
  for changes in sweep:
    name = name_of(changes)
    if name in points:
      raise errors.UserError(f'{path}: sweep() has the run {name} twice')
    for key in changes.keys() & given.keys():
      raise errors.UserError(
        f'--config.{key} is given and swept; leave it out, or train that run'
        ' alone with bn_research.train'
      )
    run = pathlib.Path(directory, name)
    # A finished run is not started again, so nothing else would notice.
    resolved = resolve(config, changes, path)
    workdir_lib.check_same_config(run, resolved)
    command = (
      *(sys.executable, '-m', 'bn_research.train', f'--config={path}'),
      *arguments({**given, **changes}),
      *(f'--workdir={run}', *flags),
    )
    points[name] = Point(name, run, command, resolved)
  return list(points.values())


def resolve(
  config: ml_collections.ConfigDict, changes: Mapping[str, Any], path: str
) -> dict[str, Any]:
  """Returns the config of one run as its `config.json` would hold it.

  Args:
    config: The config of the experiment.
    changes: The overrides of the run, as `sweep()` gives them.
    path: The experiment as it was typed, for messages.

  Raises:
    UserError: If an override names no key or is of the wrong type.
  """
  # References are kept, so that a value follows what it refers to.
  config = copy.deepcopy(config)
  overrides.apply(config, changes, f'{path}: sweep()')
  return json.loads(config.to_json_best_effort())


def arguments(changes: Mapping[str, Any]) -> list[str]:
  """Writes changes as flags, `--config.key=value`."""
  flat: dict[str, Any] = dotted.flatten(changes)
  return [f'--config.{key}={value}' for key, value in flat.items()]


def name_of(changes: Mapping[str, Any]) -> str:
  """Returns the name of a run: `model.norm.name=none,seed=0`.

  Only letters, digits and `._=,+-` stay as they are. A name that is not the
  exact text of its overrides, or too long, ends with a hash of them.
  """
  exact = ','.join(f'{key}={value}' for key, value in changes.items())
  name = re.sub(r'[^\w.=,+-]+', '_', exact, flags=re.ASCII)
  if name == exact and 0 < len(name) <= _LONGEST_NAME:
    return name
  digest = hashlib.sha256(exact.encode()).hexdigest()[:8]
  return f'{name[:_LONGEST_NAME]}-{digest}'
