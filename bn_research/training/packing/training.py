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
  loops,
  stepping,
  stopping,
)
from bn_research.training import pace as pace_lib
from bn_research.training.packing import kinds, output, records, room
from bn_research.training.packing.kinds import Kind, Setting
from bn_research.training.packing.members import Ends, Member
from bn_research.training.packing.pack import Pack


def train(
  group: Sequence[Member],
  stop: stopping.Stop,
  ended: Callable[[Member, int], None],
  say: Callable[[str], None],
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
    say: A function of a line about runs that are no pack.
    data_dir: The directory of the datasets; None for the default of TFDS.
    is_vectorized: Whether a device computes its runs at once; None for the
      form that is fast on the platform.
  """
  ends = Ends(ended, say)
  todo = _unfinished(group, ends)
  if not todo:
    return
  section, splits = todo[0].config['data'], todo[0].config['eval']['splits']
  with ends.on_error(*todo):
    dataset = feeding.open_dataset(section, data_dir, splits)
    if isinstance(dataset, data.Stream):
      raise errors.UserError(
        'config.data.stream: a pack has the data in memory; train the run alone'
      )
    for kind in kinds.sort(todo, dataset, ends):
      with ends.on_error(*kind.members):
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
  kind: Kind,
  dataset: feeding.Dataset,
  is_vectorized: bool | None,
  stop: stopping.Stop,
  ends: Ends,
) -> None:
  """Trains the runs of a kind, as many at a time as there are places."""
  if is_vectorized is None:
    is_vectorized = _is_fast_at_once(kind)
  width = kind.width or _width(kind, is_vectorized)
  devices = jax.devices()[: _num_devices(width)]
  tracers = [one.tracer for one in kind.settings]
  pack = Pack(tracers, width, devices, is_vectorized)
  pace = pace_lib.Pace()
  configs = [one.config for one in kind.settings]
  todo: queue.SimpleQueue[tuple[Setting, Member]] = queue.SimpleQueue()
  for setting in kind.settings:
    for member in setting.members:
      todo.put((setting, member))

  def work(place: int) -> None:
    """Trains the runs that take a place, one after another."""
    try:
      while stop.signal is None:
        setting, member = todo.get_nowait()
        with pack.member(place, setting.tracer), ends.on_error(member):
          programs = setting.programs.with_seed(member.config['seed'])
          record = records.write(member.config, configs, width, len(devices))
          about = {'pack': record, **member.about}
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
      about,
    )
    print(loop.line(member.directory, status))
  return status


# A device computes both branches of a condition if it computes many runs at
# once, and a condition often guards the decomposition of a matrix.
_SLOW_AT_ONCE = {'eigh', 'cholesky', 'qr', 'lu', 'svd', 'cond'}


def _is_fast_at_once(kind: Kind) -> bool:
  """Returns whether a device computes runs at once faster than in turn."""
  if jax.default_backend() == 'cpu':
    return False
  programs = kind.settings[0].tracer.programs
  (loop,) = (one.program for one in programs if one.name == 'train_steps')
  return _SLOW_AT_ONCE.isdisjoint(loops.primitives(loop))


def _width(kind: Kind, is_vectorized: bool) -> int:
  """Returns the number of places of a new pack."""
  first = kind.settings[0]
  if first.programs.form is stepping.OneByOne:
    return 1  # A run has all cores, which the devices of a CPU share.
  devices = jax.devices()[: len(kind.members)]
  most = room.most(first.tracer, devices, is_vectorized)
  count = min(len(kind.members), most, kinds.MOST)
  return -(-count // len(devices)) * len(devices)


def _num_devices(width: int) -> int:
  """Returns the largest number of devices with equal numbers of places."""
  count = jax.device_count()
  return next(n for n in range(count, 0, -1) if width % n == 0)
