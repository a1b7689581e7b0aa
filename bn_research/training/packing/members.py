"""Trains runs that differ in numbers: packs of runs in threads."""

import collections
import contextlib
import dataclasses
import json
import os
import queue
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from bn_research import disk, errors, workdir
from bn_research.training import (
  configuration,
  feeding,
  loop,
  stepping,
  stopping,
)
from bn_research.training import mesh as mesh_lib
from bn_research.training import pace as pace_lib
from bn_research.training.packing import lifting, output, room
from bn_research.training.packing.pack import Pack
from bn_research.training.packing.tracing import Tracer
from bn_research.training.programs import Programs

LOG = 'log.txt'
_FAILED = 1
# Each place has a thread and, on the devices, a training state.
_MOST = 64


@dataclasses.dataclass
class Member:
  """A run of a pack.

  Attributes:
    config: The config. All members of a group have configs that differ in real
      numbers and in the seed only.
    directory: The workdir.
    about: What `config.json` tells about the start of the run besides.
    exit_status: The exit status that the command of the run alone would have;
      None before the end.
  """

  config: dict[str, Any]
  directory: disk.PathLike
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  exit_status: int | None = None


def train(
  group: Sequence[Member],
  stop: stopping.Stop,
  data_dir: str | None = None,
  is_vectorized: bool | None = None,
) -> None:
  """Trains the runs of a group, each from its newest checkpoint.

  Runs whose programs differ in numbers only are a pack. On a CPU, a network
  whose loop is slow on the device trains one run after another, with the
  programs of the first run.

  Args:
    group: The runs. The function sets `exit_status`.
    stop: A request to stop.
    data_dir: The directory of the datasets; None for the default of TFDS.
    is_vectorized: Whether a device computes its runs at once; None for the
      form that is fast on the platform.

  Raises:
    UserError: If config, data or devices do not allow a single run.
  """
  todo = list(_unfinished(group))
  if not todo:
    return
  if is_vectorized is None:
    is_vectorized = jax.default_backend() != 'cpu'
  section, splits = todo[0].config['data'], todo[0].config['eval']['splits']
  dataset = feeding.open_dataset(section, data_dir, splits)
  for kind in _kinds(todo, dataset):
    if stop.signal is None:
      _train_pack(kind, dataset, is_vectorized, stop)


def _unfinished(group: Sequence[Member]) -> Iterator[Member]:
  """Yields the runs that are not over, with resolved configs."""
  for member in group:
    with _telling(member):
      member.config = configuration.resolve(member.config)
      if not loop.standing(member.directory, member.config).is_over:
        yield member


@contextlib.contextmanager
def _telling(member: Member) -> Iterator[None]:
  """Notes and prints the error of a run, which ends this run alone."""
  try:
    yield
  except errors.UserError as error:
    print(f'error: {error}', flush=True)
    member.exit_status = error.exit_status
  except Exception:
    print(traceback.format_exc(), flush=True)
    member.exit_status = _FAILED


@dataclasses.dataclass
class Setting:
  """Runs that differ in the seed only, and the programs of these runs."""

  programs: Programs
  tracer: Tracer
  members: list[Member]


def _kinds(
  todo: Sequence[Member],
  dataset: feeding.Dataset,
) -> list[list[Setting]]:
  """Returns the settings, in lists of settings that differ in numbers only."""
  mesh = mesh_lib.create(1, todo[0].config['batch_size'])
  feed = feeding.Memory(todo[0].config, dataset, mesh)
  settings: dict[str, Setting] = {}
  for member in todo:
    config = member.config
    key = json.dumps({**config, 'seed': None}, sort_keys=True, default=str)
    with _telling(member):
      if key not in settings:
        tracer = Tracer(mesh.devices.flat[0])
        width = min(len(todo), _MOST)
        programs = Programs(config, dataset, mesh, feed, tracer, width)
        settings[key] = Setting(programs, tracer, [])
      settings[key].members.append(member)
  kinds: list[list[Setting]] = []
  for setting in settings.values():
    alike = (kind for kind in kinds if _are_alike(kind[0], setting))
    kind = next(alike, None)
    if kind is None:
      kinds.append([setting])
    else:
      kind.append(setting)
  return kinds


def _are_alike(one: Setting, two: Setting) -> bool:
  """Returns whether the programs of two settings differ in numbers only."""
  programs = one.tracer.programs, two.tracer.programs
  try:
    for a, b in zip(*programs, strict=True):
      collections.deque(lifting.differences(a.program, b.program), maxlen=0)
  except lifting.Different as reason:
    print(f'runs of two settings are no pack: {reason}', flush=True)
    return False
  return True


def _train_pack(
  kind: Sequence[Setting],
  dataset: feeding.Dataset,
  is_vectorized: bool,
  stop: stopping.Stop,
) -> None:
  """Trains the runs of a kind, as many at a time as have room."""
  todo: queue.SimpleQueue[tuple[Setting, Member]] = queue.SimpleQueue()
  for setting in kind:
    for member in setting.members:
      todo.put((setting, member))
  width = _width(kind, is_vectorized)
  devices = jax.devices()[: _num_devices(width)]
  about = {'pack': {'width': width, 'devices': len(devices)}}
  pack = Pack([one.tracer for one in kind], width, devices, is_vectorized)
  pace = pace_lib.Pace()

  def work(place: int) -> None:
    """Trains the runs that take a place, one after another."""
    try:
      while stop.signal is None:
        setting, member = todo.get_nowait()
        with pack.member(place, setting.tracer), _telling(member):
          programs = setting.programs.with_seed(member.config['seed'])
          _go_on(member, dataset, programs, stop, pace, about)
    except queue.Empty:
      pass
    finally:
      pack.leave(place)

  places = [
    threading.Thread(target=work, args=(place,), daemon=True)
    for place in range(width)
  ]
  for thread in places:
    thread.start()
  for thread in places:
    thread.join()


def _width(kind: Sequence[Setting], is_vectorized: bool) -> int:
  """Returns the number of places.

  Runs that were in a pack before keep the number of places, because another
  number may round differently.
  """
  members = [member for setting in kind for member in setting.members]
  if recorded := max(map(_recorded_width, members)):
    return recorded
  if kind[0].programs.form is stepping.OneByOne:
    return 1  # A run has all cores, which the devices of a CPU share.
  devices = jax.devices()[: len(members)]
  most = room.most(kind[0].tracer, devices, is_vectorized)
  count = min(len(members), most, _MOST)
  return -(-count // len(devices)) * len(devices)


def _num_devices(width: int) -> int:
  """Returns the largest number of devices with equal numbers of places."""
  count = jax.device_count()
  return next(n for n in range(count, 0, -1) if width % n == 0)


def _recorded_width(member: Member) -> int:
  """Returns the number of places of the pack that trained a run; 0 for none."""
  try:
    starts = workdir.read_record(member.directory)['starts']
    return int(starts[-1]['pack']['width'])
  except (errors.UserError, LookupError):
    return 0


def _go_on(
  member: Member,
  dataset: feeding.Dataset,
  programs: Programs,
  stop: stopping.Stop,
  pace: pace_lib.Pace,
  about: Mapping[str, Any],
) -> None:
  """Trains a run in the place of the calling thread."""
  with disk.writing(member.directory):
    os.makedirs(member.directory, exist_ok=True)
  with output.to(os.path.join(member.directory, LOG)), _telling(member):
    status = loop.go_on(
      member.config,
      member.directory,
      dataset,
      programs,
      stop,
      pace,
      {**about, **member.about},
    )
    print(loop.line(member.directory, status), flush=True)
    member.exit_status = loop.exit_status(status)
