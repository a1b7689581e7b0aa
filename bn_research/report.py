"""Draws the figures of an experiment and checks the claims against the runs.

    python -m bn_research.report --config=configs/ioffe2015_fig1.py:digits \\
        --workdir=runs/fig1

Reads the runs below --workdir and writes into the folder `report` in --workdir.
The runs must be runs of the config: give each `--config.KEY=VALUE` of the
training command again.
"""

from absl import flags

from bn_research import cli, errors
from bn_research.reports import export, writing
from bn_research.sweeps import points

_EXPORT = flags.DEFINE_multi_enum(
  'export', [], list(export.KINDS), 'Formats of tables of runs and claims.'
)


def main() -> None:
  """Writes the report that `report()` of the config describes."""
  path = cli.config_path()
  module = cli.config_module(path)
  if not hasattr(module, 'report'):
    raise errors.UserError(f'{path} has no function report')
  # A config without sweep() describes a single run, without overrides.
  sweep = module.sweep() if hasattr(module, 'sweep') else [{}]
  writing.write(
    module.report(),
    str(cli.WORKDIR.value),
    [points.resolve(cli.CONFIG.value, changes, path) for changes in sweep],
    set().union(*sweep),
    _EXPORT.value,
  )


if __name__ == '__main__':
  cli.run(main)
