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
import sys

from absl import flags

from bn_research import arguments, cli, errors, interrupt

_DATA_DIR = cli.define_data_dir()
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  None,
  "Directory of compiled programs; the user's cache where not given, none where"
  ' empty.',
)
_DRY_RUN = cli.define_dry_run()
_PROCESSES = flags.DEFINE_integer(
  'processes',
  None,
  'Train in several processes of this machine, which share the devices.',
  lower_bound=1,
)
_MAX_RESTARTS = flags.DEFINE_integer(
  'max_restarts',
  0,
  'How often --processes starts all again after the loss of one.',
  lower_bound=0,
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'host:port of the first of several processes, or auto for the environment of'
  ' a cluster.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'The number of processes.', lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'The number of this process, from 0.', lower_bound=0
)


def main() -> int:
  """Trains the network of the config.

  Returns:
    The exit status.
  """
  # Until the first step, Ctrl-C loses nothing.
  interrupt.end_the_process()
  if _DRY_RUN.value:
    return _print_cost()
  _check_flags()
  if _PROCESSES.value is not None:
    return _in_processes(_PROCESSES.value)
  # The import of JAX takes long. With a late import, `--help` and errors in
  # flags do not wait for JAX.
  cli.import_jax(_join)
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


def _check_flags() -> None:
  """Raises a UserError if the flags of processes do not go together."""
  is_auto = _COORDINATOR.value in (None, 'auto')
  numbers = _NUM_PROCESSES.value, _PROCESS_ID.value
  if is_auto != (numbers == (None, None)) or (not is_auto and None in numbers):
    raise errors.UserError(
      '--coordinator=host:port, --num_processes and --process_id go together;'
      ' --coordinator=auto and --processes need none of them'
    )
  count, number = numbers
  if count is not None and number is not None and number >= count:
    raise errors.UserError(
      f'--process_id={number} is not below --num_processes={count}'
    )
  if _PROCESSES.value is not None and _COORDINATOR.value is not None:
    raise errors.UserError(
      '--processes starts processes here, and --coordinator joins others; give'
      ' one of both'
    )
  if _PROCESSES.value is None and flags.FLAGS['max_restarts'].present:
    raise errors.UserError('--max_restarts is for --processes; give both')


def _in_processes(count: int) -> int:
  """Trains in several processes, and returns the exit status."""
  from bn_research import launcher

  own = arguments.without(sys.argv[1:], ('processes', 'max_restarts'))
  command = [sys.executable, '-m', 'bn_research.train', *own]
  num_devices = cli.CONFIG.value.num_devices
  return launcher.run(command, count, num_devices, _MAX_RESTARTS.value)


def _join() -> None:
  """Joins the processes of the run, of which the first alone prints."""
  if _COORDINATOR.value is None:
    return
  from bn_research.training import processes

  processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if not processes.is_first():
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115


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
