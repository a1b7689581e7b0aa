"""The trials of a search, and the file of each trial in the workdir."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bn_research import disk, errors, json_text, workdir

FILE = 'trial.json'
PRUNED = 'pruned'


@dataclasses.dataclass(frozen=True)
class Trial:
  """A trial: a number, and the values that were suggested.

  Attributes:
    number: The number in the search, from 0. `trial=NUMBER` is the workdir.
    parameters: The values of a config by dotted key.
    attributes: What a pruner or a sampler remembers of the trial.
    pruned: The step of the row at which the trial was pruned, or None.
  """

  number: int
  parameters: Mapping[str, Any]
  attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  pruned: int | None = None

  @property
  def name(self) -> str:
    """The name of the run."""
    return f'trial={self.number}'

  def write(self, directory: disk.PathLike) -> None:
    """Writes the trial to the workdir, in the workdir of the search."""
    value = json_text.sealed(dataclasses.asdict(self))
    disk.write_json(pathlib.Path(directory, self.name, FILE), value)


class Past(NamedTuple):
  """A trial, and how far the run came.

  Attributes:
    trial: The trial.
    state: A status of `workdir`, or `PRUNED`.
    value: The objective of a trial that is done; None without a number.
    rows: The objective by step.
  """

  trial: Trial
  state: str
  value: float | None
  rows: Mapping[int, float]


def read(directory: disk.PathLike) -> list[Trial]:
  """Reads the trials of a search, in the order of the numbers.

  Args:
    directory: The workdir of the search, which need not exist.

  Raises:
    UserError: If a file is damaged.
  """
  paths = pathlib.Path(directory).glob(f'trial=*/{FILE}')
  found = [_read(path) for path in paths if _is_trial(path.parent.name)]
  return sorted(found, key=lambda trial: trial.number)


def planned(directory: disk.PathLike) -> list[Mapping[str, Any]]:
  """Returns the values of each trial that was not pruned."""
  return [
    trial.parameters
    for trial in read(directory)
    if trial.pruned is None
    or workdir.read_status(pathlib.Path(directory, trial.name)).is_over
  ]


def _is_trial(name: str) -> bool:
  return re.fullmatch(r'trial=\d+', name) is not None


def _read(path: pathlib.Path) -> Trial:
  try:
    value = json.loads(path.read_text())
    json_text.check_seal(value)
    value.pop('sha256', None)
    trial = Trial(**value)
    trial.parameters.items()
    if trial.name != path.parent.name:
      raise ValueError('the trial has another number')
    return trial
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f'{path} is damaged; remove the folder {path.parent}, and the search'
      ' draws the trial again'
    ) from error


def past(
  trial: Trial, status: str, directory: disk.PathLike, objective: str
) -> Past:
  """Reads how far the run of a trial came.

  Args:
    trial: The trial.
    status: The status of the run.
    directory: The workdir of the search.
    objective: The column of the objective.
  """
  rows = _rows(directory, trial, objective)
  # A run may be done before the signal arrives, and is done then.
  if trial.pruned is not None and status == workdir.INCOMPLETE:
    rows = {step: value for step, value in rows.items() if step <= trial.pruned}
    return Past(trial, PRUNED, None, rows)
  value = rows[max(rows)] if rows and status == workdir.DONE else None
  return Past(trial, status, value, rows)


def _rows(
  directory: disk.PathLike, trial: Trial, objective: str
) -> dict[int, float]:
  """Returns the objective in the rows of a trial, by step."""
  return {
    row['step']: row[objective]
    for row in workdir.read_metrics(pathlib.Path(directory, trial.name))
    # A number that is not finite is null in the file.
    if isinstance(row.get(objective), int | float)
    and math.isfinite(row[objective])
  }
