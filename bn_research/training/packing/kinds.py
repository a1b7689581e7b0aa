"""Sorts runs into kinds, whose programs differ in numbers only."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from bn_research import data
from bn_research.training import feeding
from bn_research.training import mesh as mesh_lib
from bn_research.training.packing import lifting, records
from bn_research.training.packing.members import Ends, Member
from bn_research.training.packing.tracing import Tracer
from bn_research.training.programs import Programs

MOST = 64
"""The largest number of runs at a time.

Each run has a thread and, on the devices, a training state.
"""


@dataclasses.dataclass
class Setting:
  """Runs that differ in the seed only, and the programs of these runs."""

  config: dict[str, Any]
  programs: Programs
  tracer: Tracer
  members: list[Member]


@dataclasses.dataclass
class Kind:
  """Settings whose programs differ in numbers only.

  Attributes:
    settings: The settings. A setting without members is over.
    width: The number of places that the pack had before; 0 for a new pack.
  """

  settings: list[Setting]
  width: int

  @property
  def members(self) -> list[Member]:
    """All runs of the kind."""
    return [member for one in self.settings for member in one.members]


def sort(
  members: Sequence[Member], dataset: data.Dataset, ends: Ends
) -> list[Kind]:
  """Traces the programs of each setting, and sorts the settings.

  Runs that were in a pack before stay in this pack, with all of its settings.

  Args:
    members: The runs, with resolved configs.
    dataset: The dataset of all runs.
    ends: What tells the end of a run whose config has a mistake.
  """
  mesh = mesh_lib.create(1, members[0].config['batch_size'])
  feed = feeding.Memory(members[0].config, dataset, mesh)

  def traced(config: dict[str, Any], *, width: int) -> Setting:
    tracer = Tracer(mesh)
    programs = Programs(config, dataset, mesh, feed, tracer, width)
    return Setting(config, programs, tracer, [])

  found = []
  for pack in _packs(members):
    width = pack.width or min(len(pack.members), MOST)
    settings = _settings(pack, functools.partial(traced, width=width), ends)
    found += _alike(settings, pack.width, ends.say)
  return [kind for kind in found if kind.members]


def _settings(
  pack: '_Pack', traced: Callable[[dict[str, Any]], Setting], ends: Ends
) -> list[Setting]:
  """Returns the settings of a pack, with the runs that are left."""
  settings = {records.key_of(one): traced(one) for one in pack.configs}
  for member in pack.members:
    key = records.key_of(member.config)
    with ends.on_error(member):
      if key not in settings:
        settings[key] = traced(member.config)
      settings[key].members.append(member)
  return list(settings.values())


@dataclasses.dataclass
class _Pack:
  """Runs that may be a pack, and the settings of the pack that there was."""

  width: int = 0
  configs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  members: list[Member] = dataclasses.field(default_factory=list)


def _packs(members: Sequence[Member]) -> list[_Pack]:
  """Sorts runs by the packs that `config.json` tells."""
  packs: dict[tuple[int, str], _Pack] = {}
  new = []
  for member in members:
    record = records.read(member)
    if record is None:
      new.append(member)
      continue
    configs = record.configs(member.config)
    configs.sort(key=records.key_of)
    key = record.width, ' '.join(map(records.key_of, configs))
    pack = packs.setdefault(key, _Pack(record.width, configs))
    pack.members.append(member)
  rest = _Pack()
  for member in new:
    # A run whose process was killed before the first file belongs to the pack.
    key_of = records.key_of(member.config)
    own = (
      p for p in packs.values() if key_of in map(records.key_of, p.configs)
    )
    next(own, rest).members.append(member)
  return [*packs.values(), *([rest] if rest.members else [])]


def _alike(
  settings: Sequence[Setting], width: int, say: Callable[[str], None]
) -> list[Kind]:
  kinds: list[Kind] = []
  for setting in settings:
    alike = (k for k in kinds if _are_alike(k.settings[0], setting, say))
    kind = next(alike, None)
    if kind is None:
      kinds.append(kind := Kind([], width))
    kind.settings.append(setting)
  return kinds


def _are_alike(one: Setting, two: Setting, say: Callable[[str], None]) -> bool:
  """Returns whether the programs of two settings differ in numbers only."""
  programs = one.tracer.programs, two.tracer.programs
  try:
    for a, b in zip(*programs, strict=True):
      collections.deque(lifting.differences(a.program, b.program), maxlen=0)
  # An error while comparing the parts of a user is a difference, too.
  except Exception as reason:
    changes = records.write(one.config, [two.config], 0, 0)['settings'][0]
    told = ', '.join(f'{key}={value}' for key, value in changes.items())
    say(f'{told} makes other programs ({reason})')
    return False
  return True
