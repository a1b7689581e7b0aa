"""What a sweep costs: the local engine, packs, and a start from a checkpoint.

    python scripts/bench_sweeps.py [--data_dir=DIR] [--num_steps=5000]

The runs are those of Figure 1: on MNIST with --data_dir, and on the digits
otherwise. Four tables:

* the local engine with two jobs, for eight short runs, against the same eight
  commands laid end to end on two cores: half of their processor time, which is
  the least possible on two cores, and half of their time on the wall, which a
  run that keeps more than one core busy cannot reach;
* packs, for 16 runs of two settings, against the local engine with two jobs,
  with the start of Python, the compilation, the evaluation and the files;
* the same for 16 learning rates and one seed, where all runs have the same
  order of the data;
* a run that goes on from a checkpoint at the last step but one, against a run
  of a single step: the difference is the price of going on.

Seconds are of a clock on the wall, and of the processors. The sweeps of packs
and of their counterparts begin with an empty cache of compiled programs. In the
other rows, the programs are in the cache of the user, after a run that does not
count.
"""

import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from absl import app, flags

_DATA_DIR = flags.DEFINE_string('data_dir', None, 'The folder of TFDS.')
_NUM_STEPS = flags.DEFINE_integer('num_steps', 5000, 'Steps of a run.')
_ROUNDS = flags.DEFINE_integer('rounds', 1, 'Measurements; the least counts.')

_ROOT = pathlib.Path(__file__).parents[1]
_CONFIG = f"""
import runpy
from bn_research import grid

_figure = runpy.run_path({str(_ROOT / 'configs/ioffe2015_fig1.py')!r})
_SETTINGS = [
  {{'model.norm.name': 'none'}},
  {{'model.norm.name': 'batch_norm', 'model.norm.momentum': 0.9}},
]

def get_config(arg='quick'):
  return _figure['get_config'](arg)

def sweep(arg='quick'):
  return grid.product(_SETTINGS, grid.seeds(8))
"""
_RATES = """
def sweep(arg='quick'):
  rates = [0.1 * 1.3**k for k in range(16)]
  return [{'optimizer.learning_rate': rate} for rate in rates]
"""


class Measured:
  """Seconds of a command on the wall and of the processors, and memory.

  Attributes:
    wall: Seconds on the wall.
    processors: Seconds of all processes together.
    megabytes: The largest memory of the command itself, without children.
  """

  def __init__(
    self, command: Sequence[str], environ: Mapping[str, str] | None = None
  ):
    """Runs a command, which must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environ)
    self.megabytes = 0.0
    while process.poll() is None:
      self.megabytes = max(self.megabytes, _memory(process.pid))
      time.sleep(0.02)
    self.wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    self.processors = (after.ru_utime + after.ru_stime) - (
      before.ru_utime + before.ru_stime
    )
    if process.returncode:
      raise SystemExit(f'failed: {" ".join(command)}')


def _memory(pid: int) -> float:
  """Returns the largest memory of a process so far, in megabytes."""
  try:
    lines = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
  except OSError:
    return 0.0
  values = [line.split()[1] for line in lines if line.startswith('VmHWM')]
  return int(values[0]) / 1024 if values else 0.0


def _least(make: 'Maker') -> Measured:
  found = [make() for _ in range(_ROUNDS.value)]
  return min(found, key=lambda one: one.wall)


class Maker:
  """A measurement of a command in an empty workdir."""

  def __init__(
    self, module: str, config: str, *more: str, is_cold: bool = False
  ):
    self._flags = [f'--config={config}', *more]
    self._module = module
    self._is_cold = is_cold

  def __call__(self) -> Measured:
    """Runs the command once."""
    with tempfile.TemporaryDirectory() as folder:
      environ = dict(os.environ)
      if self._is_cold:
        environ['JAX_COMPILATION_CACHE_DIR'] = f'{folder}/compiled'
      return Measured(self.command(folder), environ)

  def command(self, folder: str) -> list[str]:
    """Returns the command for a workdir."""
    data = [f'--data_dir={_DATA_DIR.value}'] if _DATA_DIR.value else []
    return [
      *(sys.executable, '-m', f'bn_research.{self._module}', *self._flags),
      *(f'--workdir={folder}/runs', *data),
    ]


def _engine(config: str) -> None:
  """Prints the table of the local engine."""
  short = (f'{config}:quick', '--config.eval.num_points=4')
  run = Maker('train', *short)
  run()
  alone = _least(run)
  seeds = ('--seeds=0:4', '--jobs=2')
  sweep = _least(Maker('sweep', *short, *seeds))
  print('\nlocal engine, two jobs, eight short runs')
  print(f'  a command alone            {alone.wall:6.2f} s')
  print(f'  the sweep                  {sweep.wall:6.2f} s')
  for name, one in (('processors', alone.processors), ('wall', alone.wall)):
    print(f'  eight, half of {name:11} {4 * one:6.2f} s', end='')
    print(f'  (the sweep {sweep.wall / (4 * one):.2f} times)')
  print(f'  memory of the driver       {sweep.megabytes:6.0f} MB')


def _packs(title: str, config: str) -> None:
  """Prints a table of packs."""
  variant = 'mnist' if _DATA_DIR.value else 'digits'
  steps = f'--config.num_steps={_NUM_STEPS.value}'
  given = (f'{config}:{variant}', steps)
  pool = _least(Maker('sweep', *given, '--jobs=2', is_cold=True))
  pack = _least(Maker('sweep', *given, '--pack', is_cold=True))
  print(f'\n{title}: 16 runs of {_NUM_STEPS.value:,} steps, {variant}')
  for name, one in (('two jobs', pool), ('a pack', pack)):
    rate = 16 * _NUM_STEPS.value / one.wall
    print(f'  {name:10}{one.wall:7.1f} s{rate:9,.0f} steps/s', end='')
    print(f'{one.processors:9.1f} s of processors')
  print(f'  throughput of the pack   {pool.wall / pack.wall:.2f} times')


def _going_on(config: str) -> None:
  """Prints the table of a run that goes on."""
  short = (f'{config}:quick', '--config.eval.num_points=1')
  Maker('train', *short)()
  one = _least(Maker('train', *short, '--config.num_steps=1'))
  with tempfile.TemporaryDirectory() as folder:
    make = lambda steps: Maker(
      'train', *short, f'--config.num_steps={steps}'
    ).command(folder)
    Measured(make(200))
    more = [Measured(make(200 + k)) for k in range(1, 1 + _ROUNDS.value)]
  best = min(found.wall for found in more)
  print('\na run that goes on for one step')
  print(f'  a run of one step          {one.wall:6.2f} s')
  print(f'  from a checkpoint          {best:6.2f} s', end='')
  print(f'  ({best - one.wall:+.2f} s)')


def main(argv: Sequence[str]) -> None:
  """Prints all tables."""
  del argv
  with tempfile.TemporaryDirectory() as folder:
    settings, rates = (
      pathlib.Path(folder, f'{name}.py') for name in ('settings', 'rates')
    )
    settings.write_text(_CONFIG)
    rates.write_text(_CONFIG + _RATES)
    _engine(str(settings))
    _going_on(str(settings))
    _packs('two settings, eight seeds', str(settings))
    _packs('sixteen learning rates, one order of the data', str(rates))


if __name__ == '__main__':
  app.run(main)
