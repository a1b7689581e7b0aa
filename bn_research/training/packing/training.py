"""Trains runs in packs, each run in a thread of its own."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from bn_research import data, errors, workdir
from bn_research.training import (
  configuration,
  feeding,
  loop,
  stepping,
  stopping,
)
from bn_research.training import pace as pace_lib
from bn_research.training.packing import kinds, output, room
from bn_research.training.packing.kinds import Setting
from bn_research.training.packing.members import Ends, Member
from bn_research.training.packing.pack import Pack


def train(
  group: Sequence[Member],
  stop: stopping.Stop,
  ended: Callable[[Member, int], None],
  data_dir: str | None = None,
  is_vectorized: bool | None = None,
) -> None:
  """Trains the runs of a group, each from its newest checkpoint.

  Runs whose programs differ in numbers only are a pack. On a CPU, networks
  whose loop is slow on the device train one after another, with the programs of
  the first.

  Args:
    group: The runs.
    stop: A request to stop.
    ended: A function that is called at the end of each run, with the exit
      status that the command of the run alone would have. After an error, the
      log of the run ends with the message.
    data_dir: The directory of the datasets; None for the default of TFDS.
    is_vectorized: Whether a device computes its runs at once; None for the
      form that is fast on the platform.
  """
  ends = Ends(ended)
  todo = _unfinished(group, ends)
  if not todo:
    return
  if is_vectorized is None:
    is_vectorized = jax.default_backend() != 'cpu'
  section, splits = todo[0].config['data'], todo[0].config['eval']['splits']
  with ends.on_error(*todo):
    dataset = feeding.open_dataset(section, data_dir, splits)
    if isinstance(dataset, data.Stream):
      raise errors.UserError(
        'config.data.stream: a pack has the data in memory; train the run alone'
      )
    for kind in kinds.sort(todo, dataset, ends):
      members = [member for setting in kind for member in setting.members]
      with ends.on_error(*members):
        _train_kind(kind, dataset, is_vectorized, stop, ends)


def _unfinished(group: Sequence[Member], ends: Ends) -> list[Member]:
  """Returns the runs that are not over, with resolved configs."""
  todo = []
  for member in group:
    with ends.on_error(member):
      config = configuration.resolve(member.config)
      status = loop.standing(member.directory, config)
      if status.is_over:
        ends.tell(member, loop.exit_status(status))
      else:
        todo.append(dataclasses.replace(member, config=config))
  return todo


def _train_kind(
  kind: Sequence[Setting],
  dataset: feeding.Dataset,
  is_vectorized: bool,
  stop: stopping.Stop,
  ends: Ends,
) -> None:
  """Trains the runs of a kind, as many at a time as there are places."""
  width = _width(kind, is_vectorized)
  devices = jax.devices()[: _num_devices(width)]
  pack = Pack([one.tracer for one in kind], width, devices, is_vectorized)
  pace = pace_lib.Pace()
  about = {'pack': {'width': width, 'devices': len(devices)}}
  todo: queue.SimpleQueue[tuple[Setting, Member]] = queue.SimpleQueue()
  for setting in kind:
    for member in setting.members:
      todo.put((setting, member))

  def work(place: int) -> None:
    """Trains the runs that take a place, one after another."""
    try:
      while stop.signal is None:
        setting, member = todo.get_nowait()
        with pack.member(place, setting.tracer), ends.on_error(member):
          programs = setting.programs.with_seed(member.config['seed'])
          status = _go_on(member, dataset, programs, stop, pace, about)
          ends.tell(member, loop.exit_status(status))
    except queue.Empty:
      pass
    finally:
      pack.leave(place)

  _in_threads(work, width)


def _in_threads(work: Callable[[int], None], count: int) -> None:
  # A second Ctrl-C ends the process, and waits for no thread.
  threads = [
    threading.Thread(target=work, args=(place,), daemon=True)
    for place in range(count)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()


def _go_on(
  member: Member,
  dataset: feeding.Dataset,
  programs: Any,
  stop: stopping.Stop,
  pace: pace_lib.Pace,
  about: Mapping[str, Any],
) -> workdir.Status:
  """Trains a run in the place of the calling thread."""
  with output.to(member.log):
    status = loop.go_on(
      member.config,
      member.directory,
      dataset,
      programs,
      stop,
      pace,
      {**about, **member.about},
    )
    print(loop.line(member.directory, status))
  return status


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
  count = min(len(members), most, kinds.MOST)
  return -(-count // len(devices)) * len(devices)


def _recorded_width(member: Member) -> int:
  """Returns the number of places of the pack that trained a run; 0 for none."""
  try:
    starts = workdir.read_record(member.directory)['starts']
    return int(starts[-1]['pack']['width'])
  except (errors.UserError, LookupError):
    return 0


def _num_devices(width: int) -> int:
  """Returns the largest number of devices with equal numbers of places."""
  count = jax.device_count()
  return next(n for n in range(count, 0, -1) if width % n == 0)
