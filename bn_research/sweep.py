"""Trains all runs of an experiment, each run in a separate process.

    python -m bn_research.sweep --config=configs/ioffe2015_fig1.py:digits \\
        --workdir=runs/fig1 [--config.key=value for every run]

A finished run is not trained again. After an interruption, the same command
continues the sweep.
"""

import contextlib
import os
import pathlib
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from bn_research import cli, config_files, disk, errors
from bn_research.sweeps import (
  checking,
  devices,
  driver,
  launching,
  logs,
  overview,
  packs,
  points,
  pool,
  processes,
  ray_cluster,
  ray_engine,
  selection,
  slurm,
)
from bn_research.sweeps.search import running, trials
from bn_research.sweeps.search import settings as search_settings

_DATA_DIR = cli.define_data_dir()
_JOBS = flags.DEFINE_integer(
  'jobs',
  None,
  'Runs at a time; by default 1, and on a Ray cluster as many as fit.',
  lower_bound=1,
)
_JOBS_A_DEVICE = flags.DEFINE_integer(
  'jobs_a_device', 1, 'Runs at a time on one GPU.', lower_bound=1
)
_ENGINE = flags.DEFINE_enum(
  'engine', 'local', ['local', 'ray', 'slurm'], 'Where the runs train.'
)
_RAY_ADDRESS = flags.DEFINE_string(
  'ray_address',
  None,
  'host:port of the head of a Ray cluster, or auto; without an address, Ray'
  ' starts on this machine.',
)
_RESOURCES = flags.DEFINE_string(
  'resources', None, 'Resources of each run in Ray, such as CPU=4,GPU=1.'
)
_SEARCH = flags.DEFINE_integer(
  'search',
  None,
  'The number of trials of search() of the config, in place of sweep().',
  lower_bound=1,
)
# The flags that choose points of sweep(), or train none.
_OF_SWEEPS = ('seeds', 'only', 'shard', 'launch', 'dry_run', 'pack')
_SLURM = flags.DEFINE_string(
  'slurm',
  '',
  'Options of each run in Slurm by the names of submitit:'
  ' partition=gpu,timeout_min=240,gpus_per_node=1.',
)
# The engines that read a flag.
_ENGINES = {
  'jobs': ('local', 'ray'),
  'jobs_a_device': ('local',),
  'ray_address': ('ray',),
  'resources': ('ray',),
  'slurm': ('slurm',),
  'launch': ('local',),
  'search': ('local', 'ray'),
  'pack': ('local',),
}
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands only.')
_PACK = flags.DEFINE_bool(
  'pack',
  None,
  'Train runs that differ in numbers together in one process; by default on a'
  ' GPU or TPU.',
)
_SEEDS = flags.DEFINE_string(
  'seeds', None, 'Seeds in place of those of sweep(): 0:5 for 0 to 4.'
)
_ONLY = flags.DEFINE_string(
  'only', None, 'Only runs whose name matches, for example *seed=0*.'
)
_SHARD = flags.DEFINE_string(
  'shard', None, 'The share i/n of the runs, for job i (from 0) of n jobs.'
)
_RETRY = flags.DEFINE_enum(
  'retry', None, ['failed'], 'Runs to try again, from their last checkpoint.'
)
_LAUNCH = flags.DEFINE_string(
  'launch',
  None,
  'Launch each run by a command with {command}, {name} and {workdir}, and wait'
  ' for none: sbatch --wrap="{command}".',
)
_QUEUED = flags.DEFINE_string(
  'queued', '1h', 'The time after a launch without a second launch of a run.'
)
_STATUS = flags.DEFINE_bool(
  'status', False, 'Print the state of each run, and train nothing.'
)


def main() -> int:
  """Trains the runs that `sweep()` or `search()` of the config describes.

  Returns:
    The exit status.
  """
  path = cli.config_path()
  _check_flags()
  if _SEARCH.value is not None:
    return _search(path, _SEARCH.value)
  sweep = _selected(path)
  if _STATUS.value:
    print(overview.table(sweep))
    return 0
  if _DRY_RUN.value:
    for point in sweep:
      print(shlex.join(point.command))
    return 0

  def check(todo: Sequence[points.Point]) -> None:
    _check([point.config for point in todo], path)

  # Before any run starts, a bucket tells that it cannot be written.
  disk.check_writable(str(cli.WORKDIR.value))
  retry = _RETRY.value is not None
  if (launcher := _launcher()) is not None:
    seconds = launching.seconds_of(_QUEUED.value)
    check(sweep)
    is_array = _ENGINE.value == 'slurm'
    return launching.launch(sweep, launcher, seconds, retry, is_array)
  logs.tell_folder(str(cli.WORKDIR.value))
  # The rest has no program in common with other runs, or needs more devices.
  packed, rest = packs.divide(sweep) if _is_packed() else ([], sweep)
  status = 0
  if packed:
    with _pack_engine(packed, path) as (shares, start):
      check_all = lambda todo: check([*todo, *rest])
      status = driver.run(packed, shares, check_all, retry, start)
  if rest and status != driver.INTERRUPTED:
    with _engine() as (shares, start):
      status = max(status, driver.run(rest, shares, check, retry, start))
  return status


def _is_packed() -> bool:
  """Returns whether runs train together in one process."""
  if _PACK.value is not None:
    return _PACK.value
  # On a CPU, runs in processes of their own are as quick for most networks.
  return _ENGINE.value == 'local' and bool(devices.find().names)


def _launcher() -> launching.Launcher | None:
  """Returns the launcher of the flags; None where this process waits."""
  if _ENGINE.value == 'slurm':
    folder = slurm.folder(str(cli.WORKDIR.value))
    return slurm.Array(_SLURM.value, folder).submit
  if _LAUNCH.value is not None:
    return launching.command(launching.split(_LAUNCH.value))
  return None


def _search(path: str, count: int) -> int:
  """Trains the trials of `search()`, and returns the exit status."""
  where = f'{path}: search()'
  settings = search_settings.read(config_files.call(path, 'search'), where)
  ends, given = settings.corners(), cli.config_overrides()
  points.check_given(cli.CONFIG.value, ends[0], given)
  corners = [points.resolve(cli.CONFIG.value, end, where) for end in ends]
  settings.check_objective(corners[0], where)

  def point_of(trial: trials.Trial) -> points.Point:
    (point,) = _expand(path, [trial.parameters], lambda _: trial.name)
    return point

  search = running.Search(settings, str(cli.WORKDIR.value), point_of)
  if _STATUS.value:
    states = {name: search.state(name) for name in search.points}
    pruned = {n: state for n, state in states.items() if state == trials.PRUNED}
    print(overview.table(list(search.points.values()), pruned))
    return 0
  _check(corners, path)
  with _engine() as (shares, start):
    return running.run(search, count, shares, start, _RETRY.value is not None)


def _check(configs: Sequence[Mapping[str, Any]], path: str) -> None:
  """Raises a UserError if a run of a config could not start."""
  checking.check(configs, _folder(path), _DATA_DIR.value)


def _folder(path: str) -> str:
  """Returns the folder of modules that a config may name."""
  return os.path.dirname(os.path.abspath(path.partition(':')[0]))


def _check_flags() -> None:
  """Raises a UserError if two flags do not go together."""
  is_local = _SEARCH.value is not None or _ENGINE.value == 'slurm'
  if is_local and disk.is_bucket(str(cli.WORKDIR.value)):
    raise errors.UserError(
      '--search and --engine=slurm keep files on a disk; choose another'
      ' --workdir, or train the runs of sweep()'
    )
  for name, engines in _ENGINES.items():
    if flags.FLAGS[name].present and _ENGINE.value not in engines:
      raise errors.UserError(
        f'--{name} goes with --engine={" or ".join(engines)}, and not with'
        f' --engine={_ENGINE.value}; change one of both'
      )
  if _PACK.value and _LAUNCH.value is not None:
    raise errors.UserError(
      '--pack trains runs in one process here, and --launch gives each run to a'
      ' scheduler; leave one of both out'
    )
  for name in _OF_SWEEPS if _SEARCH.value is not None else ():
    if flags.FLAGS[name].present:
      raise errors.UserError(
        f'--{name} is a flag for sweep(), and --search uses search(); leave one'
        ' of both out'
      )


@contextlib.contextmanager
def _pack_engine(
  packed: Sequence[points.Point], path: str
) -> Iterator[tuple[Sequence[Mapping[str, str]], pool.Start]]:
  """Returns the shares of the runs, and the function that starts a run."""
  request = {'folder': _folder(path), 'data_dir': _DATA_DIR.value}
  with tempfile.TemporaryDirectory() as folder:
    engine = packs.Engine(packed, _shares(), request, pathlib.Path(folder))
    yield [{}] * len(packed), engine.start


def _shares() -> Sequence[Mapping[str, str]]:
  """Returns the environment variables of each process at the same time."""
  jobs, found = _JOBS.value or 1, devices.find()
  return devices.shares(found, jobs, _JOBS_A_DEVICE.value)


@contextlib.contextmanager
def _engine() -> Iterator[tuple[Sequence[Mapping[str, str]], pool.Start]]:
  """Returns the shares of the jobs, and the function that starts a run."""
  if _ENGINE.value == 'local':
    yield _shares(), processes.start
    return
  needed = ray_cluster.resources(_RESOURCES.value or '')
  with ray_cluster.connected(_RAY_ADDRESS.value):
    room = ray_cluster.room(needed)
    engine = ray_engine.Engine(needed)
    yield [{}] * (_JOBS.value or room), engine.start


def _selected(path: str) -> Sequence[points.Point]:
  """Returns the points of the sweep that the flags choose."""
  sweep: Sequence[Any] = points.check(config_files.call(path, 'sweep'), path)
  if _SEEDS.value is not None:
    sweep = selection.with_seeds(sweep, _SEEDS.value)
  found = _expand(path, sweep)
  if _ONLY.value is not None:
    found = selection.only(found, _ONLY.value)
  if _SHARD.value is not None:
    found = selection.shard(found, _SHARD.value)
  return found


def _expand(
  path: str,
  sweep: Sequence[Mapping[str, Any]],
  named: Callable[[Mapping[str, Any]], str] | None = None,
) -> list[points.Point]:
  """Returns the points of the changes in `sweep`, with the flags of all."""
  return points.expand(
    sweep,
    cli.CONFIG.value,
    path,
    str(cli.WORKDIR.value),
    cli.config_overrides(),
    [f'--data_dir={_DATA_DIR.value}'] if _DATA_DIR.value else [],
    config_files.load(path),
    named,
  )


if __name__ == '__main__':
  cli.run(main)
