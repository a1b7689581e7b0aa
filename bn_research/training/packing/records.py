"""What `config.json` tells about the pack of a run.

The number of places, and the settings of a pack, decide how XLA rounds: a
number that no other setting changes is a constant of the program. Some settings
may be over when a pack goes on, and are therefore recorded with each run.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bn_research import dotted, errors, workdir
from bn_research.training.packing.members import Member

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Record:
  """The pack of a run.

  Attributes:
    width: The number of places.
    settings: For each setting of the pack, the values by dotted key that differ
      from the config of the run.
  """

  width: int
  settings: Sequence[Mapping[str, Any]]

  def configs(self, config: Config) -> list[dict[str, Any]]:
    """Returns the configs of all settings of the pack.

    Args:
      config: The config of the run.
    """
    return [dotted.changed(config, changes) for changes in self.settings]


def key_of(config: Config) -> str:
  """Returns a text, the same for configs that differ in the seed only."""
  return json.dumps({**config, 'seed': None}, sort_keys=True, default=str)


def write(
  config: Config, settings: Sequence[Config], width: int, num_devices: int
) -> dict[str, Any]:
  """Returns the record of a run, for `config.json`.

  Args:
    config: The config of the run.
    settings: A config of each setting of the pack.
    width: The number of places.
    num_devices: The number of devices of the pack.
  """
  return {
    'width': width,
    'devices': num_devices,
    'settings': [_changes(config, other) for other in settings],
  }


def read(member: Member) -> Record | None:
  """Returns the record of a run; None for a run that was in no pack."""
  try:
    start = workdir.read_record(member.directory)['starts'][-1]
    pack = start['pack']
    return Record(int(pack['width']), list(pack['settings']))
  except (errors.UserError, LookupError):
    return None


def _changes(config: Config, other: Config) -> dict[str, Any]:
  flat = dotted.flatten(config)
  return {
    key: value
    for key, value in dotted.flatten(other).items()
    if key != 'seed' and json.dumps(value) != json.dumps(flat.get(key))
  }
