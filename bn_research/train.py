"""Trains one network.

python -m bn_research.train --config=configs/ioffe2015_fig1.py:digits \\
  --workdir=runs/first

The workdir then holds `config.json`, `metrics.jsonl`, `status.json`, probes,
checkpoints and TensorBoard's events. The same command goes on with a run that
was interrupted. `--config.KEY=VALUE` changes a key of the config.

Exit status: 0 where the run is done, or was stopped by SIGTERM or Ctrl-C after
it was saved; 2 for a mistake in what was asked; 3 where the loss diverged.
"""

from absl import flags

from bn_research import cli, workdir

_DIVERGED = 3

_DATA_DIR = cli.define_data_dir()
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  None,
  "Directory of compiled programs; the user's cache where not given, none where"
  ' empty.',
)


def main() -> int:
  """Trains and returns the exit status."""
  from bn_research import training
  from bn_research.training import compilation

  if _CACHE.value != '':
    compilation.enable_cache(_CACHE.value)
  directory = str(cli.WORKDIR.value)
  try:
    status = training.train(cli.CONFIG.value, directory, _DATA_DIR.value)
  except training.Interrupted as end:
    status = end.status
  reason = f': {status.reason}' if status.reason else ''
  print(f'{directory}: {status.status} at step {status.step:,}{reason}')
  return _DIVERGED if status.status == workdir.DIVERGED else 0


if __name__ == '__main__':
  cli.run(main)
