"""The points of a sweep: names, workdirs and command lines."""

import ast
import copy
import dataclasses
import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from bn_research import comparison, disk, dotted, errors, overrides
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
  workdir: pathlib.PurePath
  command: tuple[str, ...]
  config: Mapping[str, Any] = dataclasses.field(hash=False)

  def read_status(self) -> workdir_lib.Status:
    """Reads the status of the run, for the number of steps in the config.

    A finished run with fewer steps than `config['num_steps']` is incomplete.
    """
    return workdir_lib.standing(self.workdir, self.config)

  def retry(self) -> None:
    """Makes a failed run incomplete, which continues from a checkpoint."""
    disk.remove(self.workdir / workdir_lib.STATUS)


def expand(
  sweep: Sequence[Mapping[str, Any]],
  config: ml_collections.ConfigDict,
  path: str,
  directory: str,
  given: Mapping[str, Any],
  flags: Sequence[str] = (),
  base: ml_collections.ConfigDict | None = None,
  named: Callable[[Mapping[str, Any]], str] | None = None,
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
    base: The config before the overrides `given`, which the flags of a run
      change; `config` by default.
    named: A function of the overrides, which returns the name of a run;
      `name_of` by default.

  Returns:
    The points, in the order of `sweep`.

  Raises:
    UserError: If an override has an unknown key or a wrong type, if a key is
      both in `sweep` and in `given`, if two runs are the same, if a workdir
      has a run of a different config, or if `directory` has a run itself.
  """
  if workdir_lib.has_config(directory):
    # A report reads the outermost run, and would not see the runs below.
    raise errors.UserError(f'{directory} holds a run; choose another --workdir')
  base = config if base is None else base
  points = {}
  names: dict[str, str] = {}
  for changes in check(sweep, path):
    resolved = resolve(config, changes, f'{path}: sweep()')
    name = (named or name_of)(changes)
    if name in points:
      raise errors.UserError(f'{path}: sweep() has the run {name} twice')
    check_given(config, changes, given)
    run = disk.path(directory, name)
    # A finished run does not start again, hence only this check can find a
    # workdir with a finished run of a different config.
    comparison.check_same_config(run, resolved)
    other = names.setdefault(_identity(resolved), name)
    if other != name:
      raise errors.UserError(
        f'{path}: sweep() has one run twice, as {other} and as {name}'
      )
    command = (
      *(sys.executable, '-m', 'bn_research.train', f'--config={path}'),
      *arguments({**given, **changes}, base),
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


def check_given(
  config: ml_collections.ConfigDict,
  changes: Mapping[str, Any],
  given: Mapping[str, Any],
) -> None:
  """Raises a UserError if a run would drop an override of the command line.

  Args:
    config: The config after the overrides `given`.
    changes: The overrides of the run, by dotted key.
    given: The overrides on the command line.
  """
  swept = dotted.flatten(changes)
  keys = [*given, *swept]
  # A text in the place of a part is short for the name of the part.
  meant = {overrides.meant(config, k, keys, v) for k, v in swept.items()}
  for key, value in given.items():
    full = overrides.meant(config, key, keys, value)
    if any(f'{full}.'.startswith(f'{other}.') for other in meant):
      raise errors.UserError(
        f'--config.{key} is given and swept; leave it out, or train that run'
        ' alone with bn_research.train'
      )


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
  config: ml_collections.ConfigDict, changes: Mapping[str, Any], where: str
) -> dict[str, Any]:
  """Returns the config of a run, in the form of `config.json`.

  Args:
    config: The config of the experiment.
    changes: The overrides of the run, by dotted key.
    where: The place of the changes, for messages: `'FILE.py: sweep()'`.

  Raises:
    UserError: If an override has an unknown key or a wrong type, or if a file
      cannot hold a value of the config.
  """
  # A deep copy keeps the references of ml_collections: a value that refers to
  # an overridden value changes, too.
  config = copy.deepcopy(config)
  overrides.apply(config, changes, where)
  for key, value in dotted.flatten(config.to_dict()).items():
    overrides.check_value(f'{where}: the config', key, value)
  return dotted.with_names(json.loads(config.to_json_best_effort()))


def arguments(
  changes: Mapping[str, Any], base: ml_collections.ConfigDict
) -> list[str]:
  """Returns changes as flags `--config.key=value`.

  Args:
    changes: The changes of a config, by dotted key or in nested dicts.
    base: The config that the flags change.
  """
  flat: dict[str, Any] = dotted.flatten(changes)
  return [
    f'--config.{key}={_quoted(base, key, value)}' for key, value in flat.items()
  ]


def _quoted(base: ml_collections.ConfigDict, key: str, value: Any) -> Any:
  """Returns a value for a flag; a text that reads as a number has quotes."""
  # A flag for a key that has a text is a text, also with quotes. A flag for any
  # further key is a literal of Python, if it can be read as a literal.
  is_open = isinstance(value, str) and not _holds_text(base, key)
  return repr(str(value)) if is_open and _is_literal(value) else value


def _holds_text(config: ml_collections.ConfigDict, key: str) -> bool:
  """Returns whether a key, or the name of the part, has the type text."""
  section, _, name = key.rpartition('.')
  parent, inside = (overrides.at(config, k) for k in (section, key))
  if isinstance(inside, ml_collections.ConfigDict):
    parent, name = inside, 'name'
  is_there = isinstance(parent, ml_collections.ConfigDict) and name in parent
  return is_there and parent.get_type(name) is str


def _is_literal(text: str) -> bool:
  """Returns whether a flag with this text is a value, and not the text."""
  if text in ('true', 'false', 'nan', 'inf', '-inf'):
    return True
  try:
    ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return False
  return True


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
