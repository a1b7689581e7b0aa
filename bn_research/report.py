"""Draws the figures of an experiment and checks the claims against the runs.

    python -m bn_research.report --config=configs/ioffe2015_fig1.py:digits \\
        --workdir=runs/fig1

Reads the runs below --workdir and writes into the folder `report` in --workdir.
The runs must be runs of the config: give each `--config.KEY=VALUE` of the
training command again.
"""

from absl import flags

from bn_research import cli, config_files
from bn_research.reports import export, writing
from bn_research.sweeps import points
from bn_research.sweeps.search import trials

# A command line of a sweep becomes the command line of its report.
cli.define_data_dir()
_EXPORT = flags.DEFINE_multi_enum(
  'export', [], list(export.KINDS), 'Formats of tables of runs and claims.'
)


def main() -> None:
  """Writes the report that `report()` of the config describes."""
  path = cli.config_path()
  report = config_files.call(path, 'report')
  # A config without sweep() describes a single run, without overrides.
  has_sweep = hasattr(config_files.module_of(path), 'sweep')
  sweep = (
    points.check(config_files.call(path, 'sweep'), path) if has_sweep else [{}]
  )
  # A search has drawn the points of its workdir.
  sweep = trials.planned(str(cli.WORKDIR.value)) or sweep
  writing.write(
    report,
    str(cli.WORKDIR.value),
    [
      points.resolve(cli.CONFIG.value, changes, f'{path}: sweep()')
      for changes in sweep
    ],
    set().union(*sweep),
    _EXPORT.value,
  )


if __name__ == '__main__':
  cli.run(main)
