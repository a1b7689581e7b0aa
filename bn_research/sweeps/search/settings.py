"""The settings of a search, which `search()` of a config file returns."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bn_research import errors, grid, ranges, registry

_DIRECTIONS = ('maximize', 'minimize')


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a search changes, and what the search wants.

  Attributes:
    space: For each dotted key of the config, a distribution of `grid`.
    objective: A column of `metrics.jsonl`. The value of a trial is the value in
      the last row.
    direction: 'maximize' or 'minimize'.
    sampler: The name of a sampler of Optuna, or a dict with `name` and options.
    pruner: The name of a pruner of Optuna, or a dict with `name` and options;
      None to let every run end.
    seed: The seed of the suggestions.
  """

  space: Mapping[str, grid.Distribution]
  objective: str
  direction: str
  sampler: Any = 'TPESampler'
  pruner: Any = None
  seed: int = 0

  def __post_init__(self):
    if not isinstance(self.space, Mapping) or not self.space:
      raise ValueError(
        f'space={self.space!r}; give a dict such as'
        " {'optimizer.learning_rate': grid.LogUniform(0.01, 1.0)}"
      )
    grid.check(self.space)
    if self.direction not in _DIRECTIONS:
      raise ValueError(
        f'direction={self.direction!r}; give {" or ".join(_DIRECTIONS)}'
      )
    ranges.whole(0, 2**31 - 1, seed=self.seed)

  def corners(self) -> list[dict[str, Any]]:
    """Returns points of the space that have each choice, and all ends.

    A check of these points before the first run finds wrong keys and values.
    """
    parts = {
      key: [d.at(k / len(d.values)) for k in range(len(d.values))]
      if isinstance(d, grid.Choice)
      else [d.low, d.high]
      for key, d in self.space.items()
    }
    count = max(map(len, parts.values()))
    return [
      {key: values[k % len(values)] for key, values in parts.items()}
      for k in range(count)
    ]

  def worst(self) -> float:
    """Returns the value of a trial that diverged."""
    return float('-inf' if self.direction == 'maximize' else 'inf')

  def check_objective(self, config: Mapping[str, Any], where: str) -> None:
    """Raises a UserError if runs of a config have no column of the objective.

    Args:
      config: The config of a run, in the form of `config.json`.
      where: The place of the settings, for the message.
    """
    names = [
      'train_eval' if s == 'train' else s for s in config['eval']['splits']
    ]
    known = ['train_loss']
    known += [
      f'{name}_{kind}' for name in names for kind in ('accuracy', 'loss')
    ]
    if self.objective not in known:
      raise errors.UserError(
        f'{where} has the objective {self.objective!r}'
        f'{registry.hint(self.objective, known)}; the runs have'
        f' {", ".join(known)}'
      )


def read(value: Any, where: str) -> Settings:
  """Returns the settings in the result of `search()` of a config file.

  Args:
    value: The result, a dict with the attributes of `Settings`.
    where: The place of the result, for messages: `'FILE.py: search()'`.

  Raises:
    UserError: If the result is no such dict.
  """
  if not isinstance(value, Mapping):
    raise errors.UserError(f'{where} returned {value!r}; return a dict')
  return registry.call(where, Settings, 'search', value)
