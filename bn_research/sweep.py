"""Trains all runs of an experiment, each run in a separate process.

    python -m bn_research.sweep --config=configs/ioffe2015_fig1.py:digits \\
        --workdir=runs/fig1 [--config.key=value for every run]

A finished run is not trained again. After an interruption, the same command
continues the sweep.
"""

import os
import shlex
from collections.abc import Sequence

from absl import flags

from bn_research import cli, config_files
from bn_research.sweeps import checking, driver, points

_DATA_DIR = cli.define_data_dir()
_JOBS = flags.DEFINE_integer('jobs', 1, 'Runs at a time.', lower_bound=1)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands only.')


def main() -> int:
  """Trains the runs that `sweep()` of the config lists.

  Returns:
    The exit status.
  """
  path = cli.config_path()
  sweep = points.expand(
    config_files.call(path, 'sweep'),
    cli.CONFIG.value,
    path,
    str(cli.WORKDIR.value),
    cli.config_overrides(),
    [f'--data_dir={_DATA_DIR.value}'] if _DATA_DIR.value else [],
    config_files.load(path),
  )
  if _DRY_RUN.value:
    for point in sweep:
      print(shlex.join(point.command))
    return 0
  # A config may name modules beside the config file.
  folder = os.path.dirname(os.path.abspath(path.partition(':')[0]))

  def check(todo: Sequence[points.Point]) -> None:
    configs = [point.config for point in todo]
    checking.check(configs, folder, _DATA_DIR.value)

  return driver.run(sweep, _JOBS.value, check)


if __name__ == '__main__':
  cli.run(main)
