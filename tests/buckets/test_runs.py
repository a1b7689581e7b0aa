"""Runs in buckets: the numbers of a run on a disk, also after a kill."""

import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx

import bn_research
from bn_research import disk, locking, workdir
from bn_research.buckets import leases
from tests.buckets import servers

pytestmark = pytest.mark.slow

_MANY_WRITES = ('--config.checkpoint_seconds=0.0',)


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path):
  """The folder of the temporary files of runs; leases are read each time."""
  monkeypatch.setattr(leases, 'BELIEVED_SECONDS', 0.0)
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  return tmp_path


def rows(directory):
  return [
    {key: value for key, value in row.items() if key != 'seconds'}
    for row in workdir.read_metrics(directory)
  ]


def leaves(run):
  return jax.tree.leaves(nnx.state(run.model()))


def assert_same_run(one, other):
  """Compares rows, probes and parameters to the bit."""
  assert rows(one)
  assert rows(one) == rows(other)
  one, other = bn_research.load(one), bn_research.load(other)
  assert one.is_done
  assert other.is_done
  for name, array in one.probes['activations'].items():
    np.testing.assert_array_equal(array, other.probes['activations'][name])
  for a, b in zip(leaves(one), leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


def wait(process, seconds=120):
  try:
    output, _ = process.communicate(timeout=seconds)
  finally:
    process.kill()
  return process.returncode, output


@pytest.fixture(scope='module')
def on_disk(tmp_path_factory):
  """The workdir of the run on a disk."""
  directory = tmp_path_factory.mktemp('run')
  status, output = wait(servers.train(str(directory)))
  assert status == 0, output
  return directory


def test_a_run_equals_the_run_on_a_disk(bucket, on_disk, temporary):
  path = f'{bucket}/runs/one'
  status, output = wait(servers.train(path, *_MANY_WRITES))
  assert (status, output.splitlines()[-1]) == (0, f'{path}: done at step 200')
  assert list(temporary.glob('bn_research-*')) == []
  assert_same_run(on_disk, path)
  assert not locking.is_held(path)
  events = disk.names(path, 'events.out.tfevents.*')
  assert len(events) == 1
  assert len(disk.read_bytes(disk.path(path, events[0]))) > 10_000
  # A run that is over stays as it is.
  before = disk.modified(disk.path(path, 'status.json'))
  assert wait(servers.train(path, *_MANY_WRITES))[0] == 0
  assert disk.modified(disk.path(path, 'status.json')) == before


@pytest.mark.parametrize('suffix', ['.tar', 'metrics.jsonl', 'status.json'])
def test_a_run_that_was_killed_in_a_write_goes_on(
  s3, s3_server, on_disk, suffix
):
  path, killer = f'{s3}/run', s3_server[1]
  process = servers.train(path, *_MANY_WRITES)
  while not disk.names(disk.path(path, 'checkpoints'), '*.tar'):
    assert process.poll() is None
    time.sleep(0.1)
  killer.suffix, killer.pid = suffix, process.pid
  assert wait(process)[0] == -signal.SIGKILL
  assert killer.killed.endswith(suffix)
  # All that is there is whole.
  assert workdir.read_status(path).status == workdir.INCOMPLETE
  content = disk.read_bytes(disk.path(path, 'metrics.jsonl'))
  assert content.endswith(b'\n')
  assert len(rows(path)) == content.count(b'\n')
  # The lease of the killed run still lives.
  status, output = wait(servers.train(path))
  assert status == 75
  assert 'another process' in output
  time.sleep(6)
  status, output = wait(servers.train(path))
  assert status == 0, output
  assert 'going on from step' in output
  assert_same_run(on_disk, path)


def test_a_run_whose_lease_was_taken_stops(s3):
  path = f'{s3}/run'
  # The run has nothing to write for a long time, and stops in spite of that.
  process = servers.train(
    path,
    '--config.num_steps=1000000',
    '--config.eval.num_points=2',
    '--config.checkpoint_seconds=1000.0',
    '--config.probes.activations=None',
  )
  while not disk.names(path, 'events.out.tfevents.*'):
    assert process.poll() is None
    time.sleep(0.1)
  time.sleep(1)
  disk.write_bytes(
    disk.path(path, leases.NAME), b'{"owner": "other", "seconds": 60.0}'
  )
  status, output = wait(process, 20)
  assert status == 75
  assert 'is lost to another process' in output.splitlines()[-1]
  names = disk.names(path, '*')
  before = [disk.modified(disk.path(path, name)) for name in names]
  time.sleep(1)
  assert before == [disk.modified(disk.path(path, name)) for name in names]


def test_a_signal_saves_the_run(s3, on_disk):
  path = f'{s3}/run'
  process = servers.train(path)
  while not rows(path):
    assert process.poll() is None
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  status, output = wait(process)
  assert status == 0
  assert 'incomplete' in output
  assert not locking.is_held(path)
  assert wait(servers.train(path))[0] == 0
  assert_same_run(on_disk, path)


def test_a_sweep_and_its_report(s3, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  common = (
    '--config=configs/ioffe2015_fig1.py:quick',
    f'--workdir={s3}/sweep',
    '--config.num_steps=40',
  )

  def call(module, *flags):
    command = [sys.executable, '-m', f'bn_research.{module}', *common, *flags]
    return subprocess.run(command, check=True, capture_output=True, text=True)

  seed = '--seeds=0:1'
  output = call('sweep', seed).stdout
  assert '2 done' in output
  log = next(tmp_path.glob('bn_research/logs/s3/*/sweep/*/log.txt'))
  assert 'done at step 40' in log.read_text()
  assert str(log.parents[1]) in output
  assert '2 done' in call('sweep', seed, '--status').stdout
  assert '2 runs, 0 to do' in call('sweep', seed).stdout
  assert f'{s3}/sweep/report/' in call('report').stdout
  figures = disk.names(f'{s3}/sweep/report', '*.png')
  assert (
    disk.read_bytes(disk.path(s3, 'sweep/report', figures[0]))[1:4] == b'PNG'
  )
  assert len(bn_research.load_all(f'{s3}/sweep')) == 2
