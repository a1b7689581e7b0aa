import json
import os
import signal

import numpy as np
import pytest

import bn_research
from bn_research import errors, locking, training, workdir
from bn_research.training import checkpoints, pace, progress, schedule
from bn_research.training.programs import Programs
from tests.quick import some
from tests.training.conftest import CONFIG

NAN = float('nan')
pytestmark = pytest.mark.usefixtures('loaded')


def evaluated(**changes):
  return {'eval': CONFIG['eval'] | changes}


def interrupt(monkeypatch, chunks, number=signal.SIGTERM):
  """Has a signal arrive while a certain chunk is computed."""
  take = Programs.train
  taken = []

  def take_and_signal(self, state, start, stop):
    taken.append(stop)
    if len(taken) == chunks:
      os.kill(os.getpid(), number)
    return take(self, state, start, stop)

  monkeypatch.setattr(Programs, 'train', take_and_signal)
  return taken


def test_a_run_leaves_what_the_plan_names(config, tmp_path):
  status = training.train(config, tmp_path)

  assert status == workdir.Status(workdir.DONE, 60, '')
  assert workdir.read_status(tmp_path) == status
  record = workdir.read_record(tmp_path)
  assert record['config']['model']['widths'] == [12, 8]
  assert record.keys() == {
    *('format', 'config', 'dataset', 'x64', 'lengths', 'starts')
  }
  assert record['dataset']['shape'] == [4, 4, 1]
  rows = workdir.read_metrics(tmp_path)
  assert [row['step'] for row in rows] == [0, 15, 30, 45, 60]
  assert 'train_loss' not in rows[0]
  assert all(row['grad_norm'] > 0 for row in rows[1:])
  assert rows[-1]['train_loss'] < rows[1]['train_loss']
  assert rows[-1]['test_accuracy'] > 0.9 > rows[0]['test_accuracy']
  probe = workdir.read_probe(tmp_path, 'activations')
  np.testing.assert_array_equal(probe['step'], [0, 1, 3, 8, 22, 60])
  np.testing.assert_array_equal(probe['percentiles'], [15, 50, 85])
  assert probe['hidden_2/input/unit'].shape == (6, 3)
  assert probe['hidden_1/input/all'].shape == (6, 3)
  assert list((tmp_path / workdir.CHECKPOINTS).glob('60'))
  assert list(tmp_path.glob('events.out.tfevents.*'))


def test_a_finished_run_is_extended(config, results, tmp_path):
  config['probes']['gradients'] = {'num_points': 2, 'spacing': 'linear'}
  training.train(config | {'num_steps': 90}, tmp_path / 'whole')
  training.train(config, tmp_path / 'cut')
  status = training.train(config | {'num_steps': 90}, tmp_path / 'cut')
  assert status == workdir.Status(workdir.DONE, 90, '')
  whole, cut = (results(tmp_path / name) for name in ('whole', 'cut'))
  assert whole[2] == cut[2]  # parameters, to the bit
  # As a run of 60 steps up to there, and as one of 90 after it.
  assert [row['step'] for row in cut[0]] == [0, 15, 30, 45, 60, 68, 90]
  assert cut[0][-1]['test_loss'] == whole[0][-1]['test_loss']
  probe = workdir.read_probe(tmp_path / 'cut', 'gradients')
  np.testing.assert_array_equal(probe['step'], [0, 30, 60, 90])
  record = workdir.read_record(tmp_path / 'cut')
  assert record['config']['num_steps'] == 90
  assert record['lengths'] == [60]
  training.train(config | {'num_steps': 100}, tmp_path / 'cut')
  assert workdir.read_record(tmp_path / 'cut')['lengths'] == [60, 90]


@pytest.mark.slow
def test_an_extended_run_goes_on_after_a_stop(
  config, results, tmp_path, monkeypatch
):
  longer = config | {'num_steps': 120}
  for name in ('whole', 'cut'):
    training.train(config, tmp_path / name)
  training.train(longer, tmp_path / 'whole')
  with monkeypatch.context() as patch:
    interrupt(patch, 1)
    with pytest.raises(training.Interrupted):
      training.train(longer, tmp_path / 'cut')
  assert 60 < workdir.read_status(tmp_path / 'cut').step < 120
  training.train(longer, tmp_path / 'cut')
  assert results(tmp_path / 'whole') == results(tmp_path / 'cut')


def test_logits_of_a_wrong_shape_are_told(config, tmp_path, user_module):
  user_module(
    'my_logits',
    'import jax.numpy as jnp\n'
    'from flax import nnx\n'
    'class Model(nnx.Module):\n'
    '  def __init__(self, *, rngs, shape):\n'
    '    self.bias = nnx.Param(jnp.zeros(shape))\n'
    '  def __call__(self, x, *, train):\n'
    '    return jnp.zeros((len(x), 1)) + self.bias[...]\n',
  )
  config['probes'] = None
  for shape, message in (
    ((5,), r'logits of shape \(37, 5\); return \(37, 4\)'),
    ((1, 16, 4), r'logits of shape \(1, 16, 4\); return \(16, num'),
  ):
    model = {'name': 'my_logits:Model', 'shape': shape, 'norm': 'none'}
    with pytest.raises(errors.UserError, match=f'config.model: .*{message}'):
      training.train(config | {'model': model}, tmp_path / 'run')


def test_probes_whose_files_would_be_one_are_told(config, tmp_path):
  config['probes'] = {'mine': 'gradients', 'Mine': 'whiteness'}
  with pytest.raises(
    errors.UserError, match="'mine' and 'Mine', which are one"
  ):
    training.train(config, tmp_path)


@pytest.mark.slow
def test_an_extension_that_was_a_typo_is_taken_back(
  config, tmp_path, monkeypatch
):
  training.train(config, tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(Programs, 'train', lambda *_: pytest.fail('no'))
    with pytest.raises(pytest.fail.Exception):
      training.train(config | {'num_steps': 10**6}, tmp_path)
  assert not bn_research.load(tmp_path).is_done
  assert training.train(config, tmp_path) == workdir.Status(workdir.DONE, 60)
  assert bn_research.load(tmp_path).is_done
  assert workdir.read_record(tmp_path)['lengths'] == []
  longer = training.train(config | {'num_steps': 90}, tmp_path)
  assert longer == workdir.Status(workdir.DONE, 90)
  with pytest.raises(errors.UserError, match='num_steps=90 there and 60 here'):
    training.train(config, tmp_path)


def test_a_run_of_before_the_newest_keys_goes_on(config, tmp_path):
  training.train(config, tmp_path)
  record = json.loads((tmp_path / workdir.CONFIG).read_text())
  for key in ('population', 'step_norms'):
    del record['config']['eval'][key]
  for key in ('lengths', 'sha256'):
    del record[key]
  (tmp_path / workdir.CONFIG).write_text(json.dumps(record))
  assert bn_research.load(tmp_path).model()
  longer = training.train(config | {'num_steps': 90}, tmp_path)
  assert longer == workdir.Status(workdir.DONE, 90)


def test_a_text_for_a_part_is_the_same_config(config, tmp_path):
  training.train(config, tmp_path)
  config['optimizer']['schedule'] = {'name': 'constant'}
  other = tmp_path / 'other'
  training.train(config, other)
  config['optimizer']['schedule'] = 'constant'
  assert training.train(config, other).status == workdir.DONE


@pytest.mark.parametrize('dtype', ['bfloat16', 'int32', 'tuple'])
def test_logits_of_other_types(config, tmp_path, dtype, user_module):
  user_module(
    'my_types',
    'import jax.numpy as jnp\n'
    'from flax import nnx\n'
    'class Model(nnx.Module):\n'
    '  def __init__(self, *, rngs, dtype):\n'
    '    self.dtype, self.kernel = dtype, nnx.Param(jnp.zeros((16, 4)))\n'
    '  def __call__(self, x, *, train):\n'
    '    y = x.reshape(len(x), -1) @ self.kernel[...]\n'
    '    return (y,) if self.dtype == "tuple" else y.astype(self.dtype)\n',
  )
  model = {'name': 'my_types:Model', 'dtype': dtype, 'norm': 'none'}
  config |= {'probes': None, 'model': model}
  if dtype == 'bfloat16':
    assert training.train(config, tmp_path / 'run').status == workdir.DONE
    return
  with pytest.raises(errors.UserError, match=f'returned {dtype}; return'):
    training.train(config, tmp_path / 'run')


@pytest.mark.parametrize(
  ('optimizer', 'num_steps'),
  [
    ({}, 30),
    ({'schedule': 'cosine'}, 90),
    ({'schedule': {'name': 'my:s'}}, 90),
  ],
)
def test_what_cannot_be_extended_is_told(
  config, tmp_path, optimizer, num_steps
):
  config['optimizer'] |= optimizer
  (tmp_path / workdir.CONFIG).write_text(
    json.dumps({'config': config | {'num_steps': 60}})
  )
  with pytest.raises(errors.UserError, match=r'num_steps=60 there.*extended'):
    training.train(config | {'num_steps': num_steps}, tmp_path)


def test_norms_may_be_means_over_all_steps(config, tmp_path, monkeypatch):
  config['eval']['num_points'] = 60
  training.train(config, tmp_path / 'each')
  each = workdir.read_metrics(tmp_path / 'each')[1:]
  config['eval'] |= {'num_points': 4, 'step_norms': 'mean'}
  training.train(config, tmp_path / 'whole')
  rows = workdir.read_metrics(tmp_path / 'whole')
  assert 'grad_norm' not in rows[0]
  for name in ('grad_norm', 'update_norm', 'param_norm', 'train_loss'):
    values = np.reshape([row[name] for row in each], (4, 15))
    found = [row[name] for row in rows[1:]]
    np.testing.assert_allclose(found, values.mean(1), rtol=1e-5)
  # The sums of a row survive a stop.
  interrupt(monkeypatch, 2)
  with pytest.raises(training.Interrupted):
    training.train(config, tmp_path / 'cut')
  assert 0 < workdir.read_status(tmp_path / 'cut').step < 60
  training.train(config, tmp_path / 'cut')
  again = workdir.read_metrics(tmp_path / 'cut')
  for row in (*rows, *again):
    del row['seconds']
  assert rows == again


def test_several_splits_are_evaluated(config, dataset, tmp_path):
  training.train(config, tmp_path / 'test')
  config['eval']['splits'] = ('test', 'train')
  training.train(config, tmp_path / 'both')
  both, alone = (
    workdir.read_metrics(tmp_path / name) for name in ('both', 'test')
  )
  for row, other in zip(both, alone, strict=True):
    assert row['train_eval_loss'] > 0
    assert row['test_loss'] == other['test_loss']
  assert both[-1]['train_eval_accuracy'] > 0.9
  config['eval']['splits'] = ('tset',)
  with pytest.raises(errors.UserError, match="'tset'; blobs has train, test"):
    training.train(config, tmp_path / 'wrong')


@pytest.mark.parametrize('seconds', some([0.0], [1e-4]))
def test_the_length_of_chunks_changes_no_bit(
  config, tmp_path, results, monkeypatch, seconds
):
  training.train(config, tmp_path / 'long')
  monkeypatch.setattr(pace, '_FIRST', 1)
  monkeypatch.setattr(pace, '_SECONDS', seconds)
  training.train(config, tmp_path / 'short')
  assert results(tmp_path / 'short') == results(tmp_path / 'long')


@pytest.mark.parametrize('number', some([signal.SIGTERM], [signal.SIGINT]))
def test_a_signal_stops_a_run_that_goes_on_to_the_same_bits(
  config, tmp_path, results, monkeypatch, number
):
  config['eval'] |= {'population': 'reestimated', 'splits': ('test', 'train')}
  config['probes'] |= {
    'covariate_shift': {'num_examples': 20, 'num_points': 3},
    'whiteness': {'num_points': 7, 'spacing': 'log'},
  }
  training.train(config, tmp_path / 'whole')
  assert len(list((tmp_path / 'whole' / workdir.PROBES).iterdir())) == 3
  with monkeypatch.context() as patch:
    taken = interrupt(patch, 4, number)
    with pytest.raises(KeyboardInterrupt) as end:
      training.train(config, tmp_path / 'cut')
  assert isinstance(end.value, training.Interrupted)
  status = end.value.status
  assert status.status == workdir.INCOMPLETE
  assert 0 < status.step == taken[3] < 60
  assert signal.Signals(number).name in status.reason
  assert training.train(config, tmp_path / 'cut').status == workdir.DONE
  assert results(tmp_path / 'cut') == results(tmp_path / 'whole')


def test_rows_after_the_checkpoint_are_measured_again(
  config, tmp_path, results, monkeypatch
):
  training.train(config, tmp_path / 'whole')
  with monkeypatch.context() as patch:
    interrupt(patch, 4)
    with pytest.raises(training.Interrupted) as end:
      training.train(config, tmp_path / 'cut')
  step = end.value.status.step
  # What a kill leaves: later rows, the last of them unfinished.
  with open(tmp_path / 'cut' / workdir.METRICS, 'a') as file:
    file.write(json.dumps({'step': step + 1, 'test_accuracy': 0.0}) + '\n')
    file.write('{"step": 4')
  probe = workdir.read_probe(tmp_path / 'cut', 'activations')
  constants = {'percentiles': probe.pop('percentiles')}
  later = {k: np.concatenate([v, v[-1:] + 60]) for k, v in probe.items()}
  workdir.write_probe(tmp_path / 'cut', 'activations', later | constants)
  training.train(config, tmp_path / 'cut')
  assert results(tmp_path / 'cut') == results(tmp_path / 'whole')


def test_what_was_measured_is_on_the_disk_before_its_checkpoint(
  config, tmp_path, monkeypatch
):
  config['checkpoint_seconds'] = 0.0
  monkeypatch.setattr(pace, '_FIRST', 7)
  sync, save = os.fsync, checkpoints.Checkpoints.save
  path = tmp_path / workdir.METRICS
  synced, saved = [], []

  def note_sync(descriptor):
    sync(descriptor)
    if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
      synced[:] = path.read_bytes().splitlines()

  def check_and_save(self, state):
    step = int(state.step)
    rows = [json.loads(line)['step'] for line in synced]
    due = schedule.measured(60, config['eval'])
    assert rows == [point for point in due if point <= step]
    probed = workdir.read_probe(tmp_path, 'activations')['step']
    due = schedule.measured(60, config['probes']['activations'])
    assert list(probed) == [point for point in due if point <= step]
    saved.append(step)
    save(self, state)

  monkeypatch.setattr(os, 'fsync', note_sync)
  monkeypatch.setattr(checkpoints.Checkpoints, 'save', check_and_save)
  assert training.train(config, tmp_path).status == workdir.DONE
  assert len(saved) > 3


def test_a_loss_that_is_not_finite_ends_the_run_for_good(
  config, tmp_path, monkeypatch
):
  config['optimizer']['learning_rate'] = 3e38  # Near the largest.
  status = training.train(config, tmp_path)
  assert status.status == workdir.DIVERGED
  assert status.step == 2  # The first step spoils the weights.
  assert status.reason == 'the training loss is nan at step 2'
  rows = workdir.read_metrics(tmp_path)
  assert [row['step'] for row in rows] == [0]

  monkeypatch.delattr(Programs, 'train')
  assert training.train(config, tmp_path) == status


def test_weights_that_are_not_finite_have_diverged_at_step_0(config, tmp_path):
  config['model']['init_scale'] = 3e38  # Near the largest.
  status = training.train(config, tmp_path)
  assert (status.status, status.step) == (workdir.DIVERGED, 0)
  assert 'test loss' in status.reason


def test_what_is_done_is_not_done_again(config, tmp_path, monkeypatch):
  status = training.train(config, tmp_path)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  monkeypatch.delattr(Programs, 'train')
  assert training.train(config, tmp_path) == status
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')} == before


def test_another_config_is_told_by_its_keys(config, tmp_path):
  training.train(config, tmp_path)
  before = (tmp_path / workdir.METRICS).read_bytes()
  config['seed'] = 1
  config['model']['norm']['name'] = 'none'
  config['checkpoint_seconds'] = 1.0  # May change.
  with pytest.raises(errors.UserError) as caught:
    training.train(config, tmp_path)
  message = str(caught.value)
  assert 'seed=0 there and 1 here' in message
  assert 'model.norm.name=batch_norm there and none here' in message
  assert 'checkpoint_seconds' not in message
  assert '--workdir' in message
  assert (tmp_path / workdir.METRICS).read_bytes() == before


def test_a_mistake_of_ours_is_noted_and_raised(config, tmp_path, monkeypatch):
  def broken(*args):
    raise RuntimeError('broken')

  with monkeypatch.context() as patch:
    patch.setattr(Programs, 'evaluate', broken)
    with pytest.raises(RuntimeError, match='broken'):
      training.train(config, tmp_path)
  status = workdir.read_status(tmp_path)
  assert status == workdir.Status(workdir.FAILED, 0, 'RuntimeError: broken')
  # Once it is mended, the same command goes on.
  assert training.train(config, tmp_path).status == workdir.DONE


def test_output_that_nobody_takes_is_no_failure_of_the_run(
  config, tmp_path, monkeypatch
):
  def say(self, line):
    raise BrokenPipeError

  with monkeypatch.context() as patch:
    patch.setattr(progress.Progress, 'say', say)
    with pytest.raises(BrokenPipeError):
      training.train(config, tmp_path)
  assert workdir.read_status(tmp_path).status == workdir.INCOMPLETE
  assert training.train(config, tmp_path).status == workdir.DONE


def test_eight_devices_give_the_curve_of_one(config, tmp_path):
  config['num_steps'] = 16
  training.train(config, tmp_path / '1')
  config['num_devices'] = 8
  training.train(config, tmp_path / '8')
  one, eight = (
    workdir.read_metrics(tmp_path / devices) for devices in ('1', '8')
  )
  for a, b in zip(one, eight, strict=True):
    assert a['step'] == b['step']
    assert a['test_loss'] == pytest.approx(b['test_loss'], rel=1e-4)
    assert a['test_accuracy'] == b['test_accuracy']
  one, eight = (
    workdir.read_probe(tmp_path / devices, 'activations')
    for devices in ('1', '8')
  )
  np.testing.assert_allclose(
    one['hidden_2/input/all'], eight['hidden_2/input/all'], atol=1e-3
  )


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(
  config, tmp_path, monkeypatch, capsys
):
  with monkeypatch.context() as patch:
    interrupt(patch, 3)
    with pytest.raises(training.Interrupted) as end:
      training.train(config, tmp_path)
  step = end.value.status.step
  capsys.readouterr()
  config['num_devices'] = 2
  assert training.train(config, tmp_path).status == workdir.DONE
  out = capsys.readouterr().out
  assert 'saved on 1 devices, going on with 2' in out
  assert f'going on from step {step}' in out


def test_two_processes_do_not_share_a_workdir(config, tmp_path):
  with (
    locking.exclusive(tmp_path),
    pytest.raises(errors.UserError, match='another process is training'),
  ):
    training.train(config, tmp_path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'optimizer': {'name': 'sdg', 'learning_rate': 1.0}},
      "optimizer='sdg'",
    ),
    ({'batch_size': 101}, '101.*100'),
    ({'num_devices': 9, 'batch_size': 18}, 'num_devices=9'),
    ({'num_devices': 3}, 'num_devices=3'),
    ({'num_steps': 0}, 'num_steps=0'),
    ({'num_steps': 2**31}, 'num_steps=2147483648; choose .* to 2,147,483,647'),
    (
      evaluated(num_points=10**12),
      'eval.num_points=1000',
    ),
    ({'seed': 0.5}, 'seed=0.5'),
    ({'seed': 2**32}, 'seed=4294967296; choose .* to 4,294,967,295'),
    ({'checkpoint_seconds': -1.0}, 'checkpoint_seconds=-1.0'),
    (
      {'optimizer': {'name': 'sgd', 'learning_rate': -1.0}},
      'learning_rate=-1.0; choose a finite number of at least 0',
    ),
    (
      {'model': {'name': 'mlp', 'norm': {'name': 'rms_norm', 'epsilon': NAN}}},
      'config.model.norm: epsilon=nan must be finite',
    ),
    (
      {'model': {'name': 'mlp', 'init_scale': NAN, 'norm': {'name': 'none'}}},
      'config.model: init_scale=nan; choose',
    ),
    (
      evaluated(spacing='cubic'),
      "'cubic'",
    ),
    (
      evaluated(splits='test'),
      "eval.splits='test'; give",
    ),
    (
      evaluated(population='reestimate'),
      "eval.population='reestimate'; choose running or reestimated .did you",
    ),
    (evaluated(step_norms='all'), "eval.step_norms='all'; choose last or mean"),
    ({'model': {'name': 'mlq', 'norm': {'name': 'none'}}}, "model='mlq'"),
    ({'model': {'name': 'mlp', 'norm': {'name': 'bn'}}}, "'bn'"),
    ({'model': {'name': 'mlp', 'norm': {}}}, 'model.norm.name'),
    (
      {'model': {'name': 'mlp', 'depth': 3, 'norm': {'name': 'none'}}},
      "no option 'depth'; it has widths",
    ),
  ],
)
def test_a_wrong_config_is_one_line_and_leaves_nothing(
  config, tmp_path, change, message
):
  directory = tmp_path / 'run'
  with pytest.raises(errors.UserError, match=message) as caught:
    training.train(config | change, directory)
  assert '\n' not in str(caught.value)
  assert not directory.exists()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'num_examples': 101}, 'probes.activations.num_examples=101.*100'),
    ({'unit': 8}, 'unit=8, but hidden_2/input has units 0 to 7'),
    ({'percentiles': (50.0, 101.0)}, 'percentiles'),
    ({'name': 'gradient'}, "activations='gradient' is unknown"),
  ],
)
def test_a_wrong_probe_is_one_line(config, tmp_path, change, message):
  config['probes']['activations'] |= change
  with pytest.raises(errors.UserError, match=message):
    training.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
