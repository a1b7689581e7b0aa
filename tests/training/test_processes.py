"""A run in several processes over loopback, as on several hosts."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bn_research import arguments, errors, launcher, workdir

ROOT = pathlib.Path(__file__).parents[2]

CONFIG = """
from bn_research import experiment

def get_config(arg=''):
  config = experiment.config({
    'num_steps': 300,
    'batch_size': 24,
    'num_devices': 4,
    'eval.num_points': 6,
    'checkpoint_seconds': 0.0,
    'optimizer.momentum': 0.9,
    'model.name': 'tests.training.double_nets:Double',
    'model.norm.name': 'batch_norm',
    'probes.activations.num_examples': 40,
  })
  config.model.kind = 'mlp'
  config.model.options = {'widths': (6, 4)}
  return config
"""


@pytest.fixture
def train(tmp_path):
  """Returns a function that starts the command, in float64."""
  config = tmp_path / 'config.py'
  config.write_text(CONFIG)
  # The suite has eight devices in each process.
  environ = {k: v for k, v in os.environ.items() if k != 'JAX_NUM_CPU_DEVICES'}
  environ |= {'JAX_ENABLE_X64': '1', 'PYTHONPATH': str(ROOT)}
  started = []

  def start(name, *flags, **more):
    command = [
      *(sys.executable, '-m', 'bn_research.train', f'--config={config}'),
      *(f'--workdir={tmp_path / name}', *flags),
    ]
    process = subprocess.Popen(
      command,
      env=environ | more,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()


def ended(process):
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  return output


def rows(directory):
  found = workdir.read_metrics(directory)
  for row in found:
    del row['seconds']
  return found


def children(process):
  """Returns the process ids of the processes of a run, by number."""
  found = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      words = path.read_bytes().decode().split('\0')
      parent = int((path.parent / 'stat').read_text().split()[3])
    except OSError:
      continue
    ids = [re.fullmatch(r'--process_id=(\d+)', word) for word in words]
    for match in filter(None, ids):
      if parent == process.pid:
        found[int(match[1])] = int(path.parent.name)
  return found


@pytest.mark.slow
@pytest.mark.parametrize('form', ['jit', 'shard_map', 'model'])
def test_two_processes_are_one(train, tmp_path, form):
  flags = {
    'jit': (),
    'shard_map': ('--config.parallel.form=shard_map',),
    'model': ('--config.parallel.model_devices=2',),
  }[form]
  ended(train('one', *flags, JAX_NUM_CPU_DEVICES='4'))
  ended(train('two', *flags, '--processes=2'))
  one, two = rows(tmp_path / 'one'), rows(tmp_path / 'two')
  assert len(one) == len(two) == 7
  for mine, expected in zip(two, one, strict=True):
    assert mine == pytest.approx(expected, rel=1e-6)
  probes = [
    workdir.read_probe(tmp_path / name, 'activations')
    for name in ('one', 'two')
  ]
  for key, array in probes[0].items():
    np.testing.assert_allclose(probes[1][key], array, rtol=1e-6, atol=1e-8)
  # A run of two processes goes on in one.
  ended(train('two', *flags, '--config.num_steps=320', JAX_NUM_CPU_DEVICES='4'))
  assert workdir.read_status(tmp_path / 'two').step == 320


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_lost_process_is_started_again(train, tmp_path, victim):
  ended(train('whole', '--processes=2'))
  process = train('cut', '--processes=2', '--max_restarts=3')
  killed = 0
  for step in (30, 120):
    while workdir.read_status(tmp_path / 'cut').step < step:
      assert process.poll() is None
      time.sleep(0.05)
    os.kill(children(process)[victim], signal.SIGKILL)
    killed += 1
    time.sleep(1)
  output = ended(process)
  told = f'process {victim} of 2 was lost to SIGKILL'
  assert output.count(told) == killed == 2
  assert rows(tmp_path / 'cut') == rows(tmp_path / 'whole')


@pytest.mark.slow
def test_sigterm_saves_all(train, tmp_path):
  process = train('run', '--processes=2')
  while workdir.read_status(tmp_path / 'run').step < 20:
    assert process.poll() is None
    time.sleep(0.05)
  process.terminate()
  assert 'stopped by SIGTERM' in ended(process)
  status = workdir.read_status(tmp_path / 'run')
  assert status.status == workdir.INCOMPLETE
  assert 20 <= status.step < 300


@pytest.mark.slow
@pytest.mark.parametrize(
  ('flags', 'reason'),
  [
    (('--config.batch_size=6',), 'batch_size=6'),
    (('--config.optimizer.learning_rate=-1.0',), 'learning_rate=-1.0'),
    (('--config.parallel.form=pmap',), 'pmap is for one process'),
  ],
)
def test_a_mistake_is_told_once(train, tmp_path, flags, reason):
  process = train('run', '--processes=2', '--max_restarts=2', *flags)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 2
  assert output.count('error: ') == 1
  assert reason in output


def test_processes_that_do_not_fit_are_told():
  with pytest.raises(errors.UserError, match='does not divide num_devices=4'):
    launcher.run(['true'], 3, 4, 0)


@pytest.mark.parametrize(
  ('flags', 'reason'),
  [
    (('--coordinator=a:1',), 'go together'),
    (('--coordinator=a:1', '--num_processes=2'), 'go together'),
    (('--coordinator=auto', '--process_id=0'), 'go together'),
    (('--process_id=0', '--num_processes=2'), 'go together'),
    (
      ('--coordinator=a:1', '--num_processes=2', '--process_id=2'),
      'process_id=2 is not below --num_processes=2',
    ),
    (('--coordinator=auto', '--processes=2'), 'give one of both'),
    (('--max_restarts=1',), 'is for --processes'),
  ],
)
def test_flags_that_do_not_go_together_are_told(train, flags, reason):
  process = train('run', *flags)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 2
  assert output.startswith('error: --')
  assert reason in output


def test_flags_are_left_out():
  argv = ['--a=1', '--processes', '2', '--b', '--max_restarts=3', '-c=4']
  names = ('processes', 'max_restarts', 'c')
  assert arguments.without(argv, names) == ['--a=1', '--b']
