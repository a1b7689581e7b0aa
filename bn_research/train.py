"""Trains a single network.

python -m bn_research.train --config=configs/ioffe2015_fig1.py:digits \\
  --workdir=runs/first

The workdir then holds `config.json`, `metrics.jsonl`, `status.json`, probes,
checkpoints and TensorBoard events. The same command continues an interrupted
run. `--config.KEY=VALUE` changes a key of the config.

`--dry_run` prints the cost of the run, and trains nothing: parameters, FLOPs,
memory and collectives. A dry run needs no workdir, no data and no accelerator.

The exit status is 0 if the run is done, or if SIGTERM or Ctrl-C stopped the run
and the run was saved. The exit status is 2 after a mistake of the user, 3 if
the loss diverged, and 75 if another process trains in the workdir.
"""

import os

from absl import flags

from bn_research import cli, interrupt

_DATA_DIR = cli.define_data_dir()
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  None,
  "Directory of compiled programs; the user's cache where not given, none where"
  ' empty.',
)
_DRY_RUN = cli.define_dry_run()


def main() -> int:
  """Trains the network of the config.

  Returns:
    The exit status.
  """
  # Until the first step, Ctrl-C loses nothing.
  interrupt.end_the_process()
  if _DRY_RUN.value:
    return _print_cost()
  # The import of JAX takes long. With a late import, `--help` and errors in
  # flags do not wait for JAX.
  cli.import_jax()
  from bn_research import training
  from bn_research.training import compilation, loop

  # None selects the default directory. Only the empty text disables the cache.
  if _CACHE.value != '':
    compilation.enable_cache(_CACHE.value)
  directory = str(cli.WORKDIR.value)
  try:
    status = training.train(cli.CONFIG.value, directory, _DATA_DIR.value)
  except training.Interrupted as end:
    status = end.status
  print(loop.line(directory, status))
  return loop.exit_status(status)


def _print_cost() -> int:
  # The numbers do not depend on the platform, and an accelerator may be busy.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  cli.import_jax()
  from bn_research.training import costs

  print(
    '\n'.join(costs.lines(costs.estimate(cli.CONFIG.value, _DATA_DIR.value)))
  )
  return 0


if __name__ == '__main__':
  cli.run(main)
