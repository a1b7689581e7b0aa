"""Files of another run, files that change meanwhile, and two processes."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import bn_research
from bn_research import data, disk, errors, json_text, training, workdir
from bn_research.training import checkpoints, copies, digests, orbax, pace
from bn_research.training.programs import Programs
from tests.quick import some

pytestmark = pytest.mark.usefixtures('loaded')


def seed_of(run):
  return workdir.read_record(run)['config']['seed']


def test_a_checkpoint_of_another_run_is_not_believed(config, tmp_path):
  ours, other = tmp_path / 'ours', tmp_path / 'other'
  training.train(config, ours)
  training.train(config | {'seed': 1}, other)
  shutil.rmtree(ours / workdir.CHECKPOINTS)
  shutil.copytree(other / workdir.CHECKPOINTS, ours / workdir.CHECKPOINTS)
  (ours / workdir.STATUS).unlink()
  rows = (ours / workdir.METRICS).read_bytes()
  with pytest.raises(
    errors.UserError, match=r'another run \(seed=1 there and 0'
  ):
    training.train(config, ours)
  assert (ours / workdir.METRICS).read_bytes() == rows


def test_a_run_of_another_process_meanwhile_is_seen(
  config, dataset, tmp_path, monkeypatch
):
  other = config | {'seed': 1}

  def load_while_another_trains(*args):
    del args
    monkeypatch.setattr(data, 'load', lambda *args: dataset)
    training.train(other, tmp_path)
    return dataset

  monkeypatch.setattr(data, 'load', load_while_another_trains)
  with pytest.raises(errors.UserError, match='another config'):
    training.train(config, tmp_path)
  assert seed_of(tmp_path) == 1


def test_a_config_that_is_lost_meanwhile_is_in_the_checkpoint(
  config, tmp_path, monkeypatch
):
  train = Programs.train

  def remove(self, state, start, stop):
    (tmp_path / workdir.CONFIG).unlink(missing_ok=True)
    return train(self, state, start, stop)

  monkeypatch.setattr(Programs, 'train', remove)
  training.train(config, tmp_path)
  assert not workdir.has_config(tmp_path)
  monkeypatch.undo()
  with pytest.raises(errors.UserError, match='another config'):
    training.train(config | {'seed': 9}, tmp_path)
  assert seed_of(tmp_path) == 0


def test_results_without_a_config_are_of_no_config(config, tmp_path):
  training.train(config, tmp_path)
  shutil.rmtree(tmp_path / workdir.CHECKPOINTS)
  (tmp_path / workdir.CONFIG).unlink()
  with pytest.raises(errors.UserError, match=r'config\.json is lost'):
    training.train(config, tmp_path)


@pytest.mark.parametrize('harm', some(['digit'], ['remove', 'replace']))
def test_rows_that_change_while_the_run_trains_are_restored(
  config, tmp_path, monkeypatch, capsys, harm, results
):
  training.train(config, tmp_path / 'good')
  train, path = Programs.train, tmp_path / 'bad' / workdir.METRICS
  harms = []

  def harmed(self, state, start, stop):
    if start >= 30 and not harms:
      harms.append(harm)
      text = path.read_text()
      if harm == 'digit':
        path.write_text(text.replace('"test_loss": 1', '"test_loss": 7', 1))
        assert path.read_text() != text
      else:
        path.unlink()
        if harm == 'replace':
          path.write_text(text)
    return train(self, state, start, stop)

  monkeypatch.setattr(Programs, 'train', harmed)
  training.train(config, tmp_path / 'bad')
  assert 'damaged while the run trained' in capsys.readouterr().out
  assert results(tmp_path / 'bad') == results(tmp_path / 'good')
  assert bn_research.load(tmp_path / 'bad').metrics['step'][-1] == 60


@pytest.mark.slow
def test_a_probe_of_another_run_is_damage(config, tmp_path):
  ours, other = tmp_path / 'ours', tmp_path / 'other'
  training.train(config, ours)
  training.train(config | {'seed': 1}, other)
  path = pathlib.Path(workdir.PROBES, 'activations.npz')
  good = (ours / path).read_bytes()
  shutil.copy(other / path, ours / path)
  for read in (
    lambda run: run.probes,
    lambda run: run.probe('activations', 'hidden_1/input/unit'),
  ):
    with pytest.raises(errors.UserError, match=r'activations\.npz is damaged'):
      read(bn_research.load(ours))
  training.train(config, ours)
  assert (ours / path).read_bytes() == good


def test_other_data_on_a_resume_are_told(
  config, dataset, tmp_path, monkeypatch
):
  training.train(config, tmp_path)
  shorter = data.Split(*(array[:60] for array in dataset.train))
  other = data.Dataset('blobs', shorter, dataset.test, 4)
  monkeypatch.setattr(data, 'load', lambda *args: other)
  with pytest.raises(errors.UserError, match='num_train=100 there and 60 here'):
    training.train(config | {'num_steps': 90}, tmp_path)
  record = workdir.read_record(tmp_path)
  assert record['dataset']['num_train'] == 100
  disk.write_json(
    tmp_path / workdir.CONFIG, json_text.sealed({**record, 'x64': True})
  )
  monkeypatch.setattr(data, 'load', lambda *args: dataset)
  with pytest.raises(errors.UserError, match='JAX_ENABLE_X64=True there and F'):
    training.train(config | {'num_steps': 90}, tmp_path)


def test_deleted_checkpoints_are_told(config, tmp_path, capsys):
  training.train(config, tmp_path)
  shutil.rmtree(tmp_path / workdir.CHECKPOINTS)
  with pytest.raises(errors.UserError, match=r'no checkpoint any more; remove'):
    bn_research.load(tmp_path).model()
  training.train(config | {'num_steps': 90}, tmp_path)
  assert 'no checkpoint is left of 60 steps' in capsys.readouterr().out


@pytest.mark.parametrize(
  'error',
  [
    PermissionError(13, 'Permission denied'),
    pytest.param(
      ValueError("reading: os_error_code='24'"), marks=pytest.mark.slow
    ),
    pytest.param(MemoryError(), marks=pytest.mark.slow),
  ],
)
def test_a_failure_of_the_system_is_no_damage(
  config, tmp_path, monkeypatch, error
):
  training.train(config, tmp_path)

  def fail(*args):
    raise error

  monkeypatch.setattr(orbax, 'read_arrays', fail)
  before = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
  with pytest.raises(errors.UserError, match=r'cannot be read: .*mend that'):
    training.train(config | {'num_steps': 90}, tmp_path)
  after = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
  assert before == after


@pytest.fixture
def stopped(config, tmp_path, monkeypatch):
  """A run that was stopped with two checkpoints."""
  train = Programs.train
  run = tmp_path / 'stopped'

  def take_and_stop(self, state, start, stop):
    if start >= 30:
      raise KeyboardInterrupt
    return train(self, state, start, stop)

  with monkeypatch.context() as patch:
    patch.setattr(pace, '_FIRST', 5)
    patch.setattr(Programs, 'train', take_and_stop)
    with pytest.raises(KeyboardInterrupt):
      training.train(config | {'checkpoint_seconds': 0.0}, run)
  return run


def newest(run):
  folder = run / workdir.CHECKPOINTS
  return folder / str(max(int(p.name) for p in folder.iterdir()))


def test_the_digests_decide(config, stopped, monkeypatch, capsys):
  step = newest(stopped).name
  of_arrays = digests.of_arrays
  calls = []

  def wrong_once(tree):
    calls.append(1)
    found = of_arrays(tree)
    return dict.fromkeys(found, '0' * 16) if len(calls) == 1 else found

  monkeypatch.setattr(digests, 'of_arrays', wrong_once)
  training.train(config, stopped)
  assert f'checkpoint {step} is damaged' in capsys.readouterr().out


@pytest.mark.slow
def test_the_digests_of_copies_decide(config, stopped, monkeypatch, capsys):
  step = newest(stopped).name
  files = {'metrics.jsonl': b'{"step": 0}\n'}
  expected = copies.digests({'metrics.jsonl': b'{"step": 1}\n'})
  with pytest.raises(ValueError, match='digest of a file'):
    copies.from_arrays(copies.as_arrays(files), expected)
  as_arrays = copies.from_arrays

  def wrong(arrays, expected):
    return as_arrays(arrays, dict.fromkeys(expected, '0' * 64))

  with monkeypatch.context() as patch:
    patch.setattr(copies, 'from_arrays', wrong)
    training.train(config, stopped)
  assert f'checkpoint {step} is damaged' in capsys.readouterr().out


def test_a_description_that_was_changed_is_damage(config, stopped, capsys):
  (path,) = (
    path
    for path in (newest(stopped) / 'run').iterdir()
    if path.is_file() and 'num_devices' in path.read_text()
  )
  run = json.loads(path.read_text())
  run['num_devices'] = 7
  path.write_text(json.dumps(run))
  # The older checkpoint knows the config.
  (stopped / workdir.CONFIG).write_text('{')
  assert checkpoints.read_record(stopped)['config']['seed'] == 0
  training.train(config, stopped)
  out = capsys.readouterr().out
  assert 'is damaged (' in out
  assert '7 devices' not in out


def test_a_status_that_was_changed_is_not_believed(config, tmp_path):
  training.train(config, tmp_path)
  path = tmp_path / workdir.STATUS
  path.write_text(path.read_text().replace('"done"', '"diverged"'))
  assert workdir.read_status(tmp_path) == workdir.Status()


def test_a_restored_file_is_told_and_a_longer_file_is_not(tmp_path, capsys):
  path = tmp_path / workdir.METRICS
  files = {workdir.METRICS: b'{"step": 0}\n'}
  for content, is_told in (
    (b'{"step": 0}\n{"step": 5}\n', False),
    (b'{"step": 1}\n{"step": 5}\n', True),
    (b'', True),
  ):
    path.write_bytes(content)
    copies.put_back(tmp_path, files, print)
    assert ('was damaged; it is restored' in capsys.readouterr().out) == is_told
    assert path.read_bytes() == files[workdir.METRICS]


def test_a_run_under_nohup_ignores_a_hangup():
  program = (
    'import os, signal, sys\n'
    'from bn_research.training import stopping\n'
    # The tests themselves may run under nohup.
    'if sys.argv[1] == "SIGHUP":\n'
    '  signal.signal(signal.SIGHUP, signal.SIG_DFL)\n'
    'with stopping.on_signals() as stop:\n'
    '  os.kill(os.getpid(), signal.SIGHUP)\n'
    '  print(stop.signal)\n'
  )
  ignoring = ('bash', '-c', 'trap "" HUP; exec "$@"', 'bash')
  for prefix, expected in ((ignoring, 'None'), ((), 'SIGHUP')):
    done = subprocess.run(
      [*prefix, sys.executable, '-c', program, expected],
      env={**os.environ, 'PYTHONPATH': os.getcwd()},
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.stdout.strip() == expected, done.stderr
