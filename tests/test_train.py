"""The command as a person runs it: in a process of its own."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bn_research import workdir
from tests.quick import some

ROOT = pathlib.Path(__file__).parents[1]
CONFIG_FILE = ROOT / 'configs' / 'ioffe2015_fig1.py'
CONFIG = f'--config={CONFIG_FILE}:quick'


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
  """Where the digits and compiled programs are kept for all tests here."""
  return tmp_path_factory.mktemp('shared')


@pytest.fixture
def start(shared, tmp_path):
  """Starts the command; what still runs in the end is killed."""
  started = []

  def start(*flags, name='run', before=(), config=CONFIG, num_devices=1):
    command = [*before, sys.executable, '-m', 'bn_research.train', config]
    command += [f'--workdir={tmp_path / name}', f'--data_dir={shared}/data']
    command += [f'--compilation_cache={shared}/compiled', *flags]
    process = subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env={**os.environ, 'JAX_NUM_CPU_DEVICES': str(num_devices)},
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


def finish(process):
  out, err = process.communicate(timeout=120)
  return process.returncode, out, err


def wait_for_a_checkpoint(process, directory):
  """Waits until the process has saved twice since it was started."""
  root = directory / workdir.CHECKPOINTS
  seen = set()
  while len(seen) < 2:
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.01)
    if root.exists():
      seen |= {path.name for path in root.iterdir() if path.name.isdigit()}


def test_a_dry_run_prints_the_cost_and_writes_nothing(tmp_path):
  command = [sys.executable, '-m', 'bn_research.train', '--dry_run', CONFIG]
  command += ['--config.data.name=cifar10', f'--data_dir={tmp_path}/data']
  command += ['--config.num_devices=4']
  environment = {**os.environ, 'JAX_PLATFORMS': '', 'JAX_NUM_CPU_DEVICES': '1'}
  done = subprocess.run(
    command, capture_output=True, text=True, cwd=ROOT, env=environment
  )
  assert (done.returncode, done.stderr) == (0, '')
  words = done.stdout.split()
  assert {'cifar10,', 'parameters', 'MFLOP', 'collectives'} <= set(words)
  assert not list(tmp_path.iterdir())


LONG = ('--config.num_steps=4000', '--config.checkpoint_seconds=0.0')
THREE_PROBES = (
  '--config.probes.gradients.num_points=30',
  '--config.probes.whiteness.num_points=7',
)


def test_the_shortest_run(start, tmp_path):
  code, out, err = finish(start())
  assert (code, err) == (0, '')
  assert out.splitlines()[-1] == f'{tmp_path}/run: done at step 200'
  assert workdir.read_status(tmp_path / 'run').status == workdir.DONE

  code, out, err = finish(start())
  assert (code, err) == (0, '')
  assert out == f'{tmp_path}/run: done at step 200\n'


PERCEPTRON = (CONFIG, '--config.num_steps=4000', *THREE_PROBES)
# A network with convolutions, whose images the steps change at random.
RESIDUAL = (
  f'--config={ROOT}/configs/he2016_resnet.py:quick',
  '--config.num_steps=160',
  '--config.model.width=4',
  '--config.batch_size=32',
  *THREE_PROBES,
)


@pytest.mark.parametrize(
  ('command', 'num_devices'),
  some([(PERCEPTRON, 1)], [(RESIDUAL, 1), (RESIDUAL, 2)]),
)
def test_a_killed_run_ends_in_the_same_bits(
  start, tmp_path, command, num_devices
):
  config, num_steps, *probes = command
  devices = f'--config.num_devices={num_devices}'
  given = {'config': config, 'num_devices': num_devices}
  flags = (num_steps, devices, *probes)
  assert finish(start(*flags, name='whole', **given))[0] == 0
  flags = (*flags, '--config.checkpoint_seconds=0.0')
  for _ in range(2):
    process = start(*flags, **given)
    wait_for_a_checkpoint(process, tmp_path / 'run')
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert workdir.read_status(tmp_path / 'run').status == workdir.INCOMPLETE
  code, out, err = finish(start(*flags, **given))
  assert (code, err) == (0, '')
  assert 'going on from step' in out

  whole, run = tmp_path / 'whole', tmp_path / 'run'
  rows = [workdir.read_metrics(directory) for directory in (whole, run)]
  for row in (*rows[0], *rows[1]):
    row.pop('seconds')
  assert rows[0] == rows[1]
  keys = {path.stem for path in (whole / workdir.PROBES).iterdir()}
  assert keys >= {'gradients', 'whiteness'}
  assert workdir.read_status(whole) == workdir.read_status(run)
  for name in (f'{workdir.PROBES}/{key}.npz' for key in keys):
    assert (whole / name).read_bytes() == (run / name).read_bytes()
  for a, b in zip(arrays(whole), arrays(run), strict=True):
    np.testing.assert_array_equal(a, b)


def arrays(directory):
  import jax
  from orbax import checkpoint as ocp

  with ocp.CheckpointManager(directory / workdir.CHECKPOINTS) as manager:
    state = manager.restore(
      manager.latest_step(),
      args=ocp.args.Composite(state=ocp.args.StandardRestore()),
    )
  return jax.tree.leaves(state['state'])


@pytest.mark.parametrize('number', some([signal.SIGINT], [signal.SIGTERM]))
def test_a_polite_signal_ends_the_run_politely(start, tmp_path, number):
  flags = ('--config.num_steps=100000000', '--config.checkpoint_seconds=0.0')
  process = start(*flags)
  wait_for_a_checkpoint(process, tmp_path / 'run')
  process.send_signal(number)
  code, out, err = finish(process)
  assert (code, err) == (0, '')
  status = workdir.read_status(tmp_path / 'run')
  assert status.status == workdir.INCOMPLETE
  assert signal.Signals(number).name in out.splitlines()[-1]
  saved = (tmp_path / 'run' / workdir.CHECKPOINTS).iterdir()
  assert str(status.step) in [path.name for path in saved]


def test_a_run_that_diverges_says_so_and_exits_with_3(start, tmp_path):
  for _ in range(2):
    code, out, err = finish(start('--config.optimizer.learning_rate=3e38'))
    assert (code, err) == (3, '')
    assert 'diverged at step 2: the training loss is nan' in out
  assert workdir.read_status(tmp_path / 'run').status == workdir.DIVERGED


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(start, tmp_path):
  process = start(*LONG)
  wait_for_a_checkpoint(process, tmp_path / 'run')
  process.kill()
  finish(process)
  rows = workdir.read_metrics(tmp_path / 'run')
  step = workdir.read_status(tmp_path / 'run').step

  limited = ['bash', '-c', 'ulimit -f 2; exec "$@"', 'bash']  # 2 KiB a file.
  code, _, err = finish(start(*LONG, before=limited))
  assert code == 2
  assert err.startswith('error: cannot write ')
  assert err.count('\n') == 1
  kept = workdir.read_metrics(tmp_path / 'run')
  assert kept == [row for row in rows if row['step'] <= step][: len(kept)]
  code, out, err = finish(start(*LONG))
  assert (code, err) == (0, '')
  assert 'going on from step' in out


@pytest.mark.parametrize(
  ('flags', 'message'),
  some(
    [
      (['--config.model.norm.epsilon=nan'], 'config.model.norm: epsilon=nan'),
      ([f'--workdir={CONFIG_FILE}/run'], 'cannot write '),
    ],
    [
      (['--config.data.name=nothing'], ''),
      (['--config.model.norm.name=bacth_norm'], ''),
      (['--config.optimizer.learning_rate=-1'], 'config.optimizer.schedule: '),
      (['--config.num_devices=2'], 'num_devices=2, but there are 1'),
      ([f'--workdir={"a" * 300}'], 'cannot write '),
    ],
  ),
)
def test_a_mistake_is_one_line(start, tmp_path, flags, message):
  code, out, err = finish(start(*flags))
  assert (code, out) == (2, '')
  assert err.startswith(f'error: {message}')
  assert err.count('\n') == 1
  assert not (tmp_path / 'run').exists()
