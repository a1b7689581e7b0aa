"""Sorts runs into kinds, whose programs differ in numbers only."""

import collections
import dataclasses
import json
from collections.abc import Sequence

from bn_research import data
from bn_research.training import feeding
from bn_research.training import mesh as mesh_lib
from bn_research.training.packing import lifting
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

  programs: Programs
  tracer: Tracer
  members: list[Member]


def sort(
  members: Sequence[Member], dataset: data.Dataset, ends: Ends
) -> list[list[Setting]]:
  """Traces the programs of each setting, and sorts the settings.

  Args:
    members: The runs, with resolved configs.
    dataset: The dataset of all runs.
    ends: What tells the end of a run whose config has a mistake.

  Returns:
    Lists of settings. The programs of the settings of a list differ in numbers
    only.
  """
  mesh = mesh_lib.create(1, members[0].config['batch_size'])
  feed = feeding.Memory(members[0].config, dataset, mesh)
  settings: dict[str, Setting] = {}
  for member in members:
    config = member.config
    key = json.dumps({**config, 'seed': None}, sort_keys=True, default=str)
    with ends.on_error(member):
      if key not in settings:
        tracer = Tracer(mesh.devices.flat[0])
        width = min(len(members), MOST)
        programs = Programs(config, dataset, mesh, feed, tracer, width)
        settings[key] = Setting(programs, tracer, [])
      settings[key].members.append(member)
  kinds: list[list[Setting]] = []
  for setting in settings.values():
    alike = (kind for kind in kinds if _are_alike(kind[0], setting))
    kind = next(alike, None)
    if kind is None:
      kinds.append(kind := [])
    kind.append(setting)
  return kinds


def _are_alike(one: Setting, two: Setting) -> bool:
  """Returns whether the programs of two settings differ in numbers only."""
  programs = one.tracer.programs, two.tracer.programs
  try:
    for a, b in zip(*programs, strict=True):
      collections.deque(lifting.differences(a.program, b.program), maxlen=0)
  except lifting.Different as reason:
    directories = [setting.members[0].directory for setting in (one, two)]
    print(f'no pack of {" and ".join(map(str, directories))}: {reason}')
    return False
  return True
