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

from bn_research import comparison, dotted, errors, overrides
from bn_research import workdir as workdir_lib

_LONGEST_NAME = 120


@dataclasses.dataclass(frozen=True)
class Point:
  """A run of a sweep.

  Attributes:
    name: A readable name made from the overrides. The name is also the name of
      the workdir.
    workdir: The workdir of the run.
    command: The command line that trains the run.
    config: The config of the run, in the form of `config.json`.
  """

  name: str
  workdir: pathlib.Path
  command: tuple[str, ...]
  config: Mapping[str, Any] = dataclasses.field(hash=False)

  def read_status(self) -> workdir_lib.Status:
    """Reads the status of the run, for the number of steps in the config.

    A finished run with fewer steps than `config['num_steps']` is incomplete.
    """
    return workdir_lib.standing(self.workdir, self.config)


def expand(
  sweep: Sequence[Mapping[str, Any]],
  config: ml_collections.ConfigDict,
  path: str,
  directory: str,
  given: Mapping[str, Any],
  flags: Sequence[str] = (),
) -> list[Point]:
  """Makes the points of a sweep from overrides, and checks each point.

  Args:
    sweep: A flat dict of overrides for each run, as `sweep()` of a config file
      returns the dicts.
    config: The config after the overrides `given`.
    path: The experiment on the command line: `path.py` or `path.py:argument`.
    directory: The workdir of the sweep, which contains the workdirs of runs.
    given: The overrides on the command line, for every run.
    flags: Further flags for every run.

  Returns:
    The points, in the order of `sweep`.

  Raises:
    UserError: If an override has an unknown key or a wrong type, if a key is
      both in `sweep` and in `given`, if two runs are the same, or if a workdir
      has a run of a different config.
  """
  points = {}
  names: dict[str, str] = {}
  for changes in check(sweep, path):
    name = name_of(changes)
    if name in points:
      raise errors.UserError(f'{path}: sweep() has the run {name} twice')
    for key in changes.keys() & given.keys():
      raise errors.UserError(
        f'--config.{key} is given and swept; leave it out, or train that run'
        ' alone with bn_research.train'
      )
    run = pathlib.Path(directory, name)
    # A finished run does not start again, hence only this check can find a
    # workdir with a finished run of a different config.
    resolved = resolve(config, changes, path)
    comparison.check_same_config(run, resolved)
    other = names.setdefault(_identity(resolved), name)
    if other != name:
      raise errors.UserError(
        f'{path}: sweep() has one run twice, as {other} and as {name}'
      )
    command = (
      *(sys.executable, '-m', 'bn_research.train', f'--config={path}'),
      *arguments({**given, **changes}),
      *(f'--workdir={run}', *flags),
    )
    points[name] = Point(name, run, command, resolved)
  return list(points.values())


def check(sweep: Any, path: str) -> list[Mapping[str, Any]]:
  """Checks the result of `sweep()` of a config file.

  Args:
    sweep: The result.
    path: The experiment as typed on the command line, for messages.

  Returns:
    The changes of each run, by dotted key.

  Raises:
    UserError: If the result is not a list of dicts whose keys are texts.
  """
  is_list = isinstance(sweep, list | tuple)
  for changes in sweep if is_list else [sweep]:
    is_dict = is_list and isinstance(changes, Mapping)
    if not is_dict or not all(isinstance(key, str) for key in changes):
      raise errors.UserError(
        f'{path}: sweep() returned {changes!r}; return a list of dicts of'
        " values by dotted key, such as [{'seed': 0}, {'seed': 1}]"
      )
  if not sweep:
    raise errors.UserError(f'{path}: sweep() returned no run')
  return list(sweep)


def _identity(config: Mapping[str, Any]) -> str:
  """Returns a text that is the same for equal configs: 1 and 1.0 are equal."""
  flat = {
    # True is an int of Python, and is not the number 1 of a config.
    key: float(value) if type(value) is int else value
    for key, value in dotted.flatten(config).items()
    if value is not None
  }
  return json.dumps(flat, sort_keys=True)


def resolve(
  config: ml_collections.ConfigDict, changes: Mapping[str, Any], path: str
) -> dict[str, Any]:
  """Returns the config of a run, in the form of `config.json`.

  Args:
    config: The config of the experiment.
    changes: The overrides of the run, by dotted key.
    path: The experiment on the command line, for messages.

  Raises:
    UserError: If an override has an unknown key or a wrong type.
  """
  # A deep copy keeps the references of ml_collections: a value that refers to
  # an overridden value changes, too.
  config = copy.deepcopy(config)
  overrides.apply(config, changes, f'{path}: sweep()')
  return json.loads(config.to_json_best_effort())


def arguments(changes: Mapping[str, Any]) -> list[str]:
  """Returns changes as flags `--config.key=value`.

  Args:
    changes: The changes of a config, by dotted key or in nested dicts.
  """
  flat: dict[str, Any] = dotted.flatten(changes)
  return [f'--config.{key}={value}' for key, value in flat.items()]


def name_of(changes: Mapping[str, Any]) -> str:
  """Returns the name of a run, for example `model.norm.name=none,seed=0`.

  The name keeps letters, digits and `._=,+-` of ASCII, and has `_` in place of
  all further characters. A changed name, an empty name and a name above 120
  characters end with a hash of the overrides.

  Args:
    changes: The overrides of the run, by dotted key.
  """
  exact = ','.join(f'{key}={value}' for key, value in changes.items())
  name = re.sub(r'[^\w.=,+-]+', '_', exact, flags=re.ASCII)
  if name == exact and 0 < len(name) <= _LONGEST_NAME:
    return name
  digest = hashlib.sha256(exact.encode()).hexdigest()[:8]
  return f'{name[:_LONGEST_NAME]}-{digest}'
