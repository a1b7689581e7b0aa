"""Trains all runs of an experiment, each run in a separate process.

    python -m bn_research.sweep --config=configs/ioffe2015_fig1.py:digits \\
        --workdir=runs/fig1 [--config.key=value for every run]

A finished run is not trained again. After an interruption, the same command
continues the sweep.
"""

import os
import shlex
from collections.abc import Sequence
from typing import Any

from absl import flags

from bn_research import cli, config_files, disk
from bn_research.sweeps import (
  checking,
  devices,
  driver,
  launching,
  logs,
  overview,
  points,
  selection,
)

_DATA_DIR = cli.define_data_dir()
_JOBS = flags.DEFINE_integer('jobs', 1, 'Runs at a time.', lower_bound=1)
_JOBS_A_DEVICE = flags.DEFINE_integer(
  'jobs_a_device', 1, 'Runs at a time on one GPU.', lower_bound=1
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands only.')
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
  """Trains the runs that `sweep()` of the config lists.

  Returns:
    The exit status.
  """
  path = cli.config_path()
  sweep = _selected(path)
  if _STATUS.value:
    print(overview.table(sweep))
    return 0
  if _DRY_RUN.value:
    for point in sweep:
      print(shlex.join(point.command))
    return 0
  # A config may name modules beside the config file.
  folder = os.path.dirname(os.path.abspath(path.partition(':')[0]))

  def check(todo: Sequence[points.Point]) -> None:
    configs = [point.config for point in todo]
    checking.check(configs, folder, _DATA_DIR.value)

  # Before any run starts, a bucket tells that it cannot be written.
  disk.check_writable(str(cli.WORKDIR.value))
  if _LAUNCH.value is not None:
    template = launching.split(_LAUNCH.value)
    seconds = launching.seconds_of(_QUEUED.value)
    check(sweep)
    return launching.launch(sweep, template, seconds, _RETRY.value is not None)
  shares = devices.shares(devices.find(), _JOBS.value, _JOBS_A_DEVICE.value)
  logs.tell_folder(str(cli.WORKDIR.value))
  return driver.run(sweep, shares, check, retry=_RETRY.value is not None)


def _selected(path: str) -> Sequence[points.Point]:
  """Returns the points of the sweep that the flags choose."""
  sweep: Sequence[Any] = points.check(config_files.call(path, 'sweep'), path)
  if _SEEDS.value is not None:
    sweep = selection.with_seeds(sweep, _SEEDS.value)
  found = points.expand(
    sweep,
    cli.CONFIG.value,
    path,
    str(cli.WORKDIR.value),
    cli.config_overrides(),
    [f'--data_dir={_DATA_DIR.value}'] if _DATA_DIR.value else [],
    config_files.load(path),
  )
  if _ONLY.value is not None:
    found = selection.only(found, _ONLY.value)
  if _SHARD.value is not None:
    found = selection.shard(found, _SHARD.value)
  return found


if __name__ == '__main__':
  cli.run(main)
