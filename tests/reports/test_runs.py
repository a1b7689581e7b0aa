"""What a report reads, and what it refuses to read."""

import dataclasses
import json
import shutil

import ml_collections
import numpy as np
import pytest

from bn_research import disk, errors, results, workdir
from bn_research.reports import runs, writing
from bn_research.sweeps import points


def test_a_curve_has_the_rows_where_both_were_measured(fake_run, tmp_path):
  path = fake_run('none', 0)
  (run,) = runs.load(str(path))
  lines = (path / workdir.METRICS).read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == 102
  for y, size in (('test_accuracy', 101), ('train_loss', 102)):
    steps, values = run.columns('step', y)
    there = [row for row in rows if y in row]
    assert len(there) == size
    np.testing.assert_array_equal(steps, [row['step'] for row in there])
    np.testing.assert_array_equal(values, [row[y] for row in there])


def test_runs_are_found_below_and_checkpoints_not_searched(fake_run, tmp_path):
  path = fake_run('none', 0)
  inner = path / workdir.CHECKPOINTS / '100' / workdir.CONFIG
  inner.parent.mkdir(parents=True)
  inner.write_text('not a run')
  fake_run('batch_norm', 1)
  found = runs.load(str(tmp_path))
  assert [run.config['model.norm.name'] for run in found] == [
    'batch_norm',
    'none',
  ]


def test_unfinished_runs_are_left_out_and_named(fake_run, tmp_path, capsys):
  fake_run('none', 0)
  for seed, status in enumerate(('incomplete', 'failed', 'diverged'), start=1):
    fake_run('none', seed, status=status)
  found = runs.load(str(tmp_path))
  assert [run.is_done for run in found] == [True, False]
  out = capsys.readouterr().out
  assert f'left out, because incomplete: {tmp_path}/norm=none,seed=1' in out
  assert f'left out, because failed: {tmp_path}/norm=none,seed=2' in out


def test_no_runs(tmp_path):
  for directory in (tmp_path, tmp_path / 'missing'):
    with pytest.raises(errors.UserError, match='no runs; train some with'):
      runs.load(str(directory))


@pytest.mark.parametrize('status', ['incomplete', 'failed', 'diverged'])
def test_no_run_is_done(status, fake_run, tmp_path):
  fake_run('none', 0, status=status)
  with pytest.raises(errors.UserError, match='no run that is done'):
    runs.load(str(tmp_path))


def belonging(directory, *norms, **changes):
  """The runs below a directory that are of an experiment with these norms."""
  config = {
    'seed': 0,
    'num_steps': 1000,
    'batch_size': 60,
    **changes,
  }
  points = [{**config, 'model': {'norm': {'name': norm}}} for norm in norms]
  found = runs.load(str(directory))
  return runs.of_experiment(found, points, {'seed', 'model.norm.name'})


def test_all_seeds_of_an_experiment_are_its_runs(fake_run, tmp_path):
  for norm, seed in (('none', 0), ('batch_norm', 0), ('batch_norm', 7)):
    fake_run(norm, seed)
  assert len(belonging(tmp_path, 'none', 'batch_norm', 'layer_norm')) == 3


def test_what_does_not_change_a_curve_is_no_other_experiment(
  fake_run, tmp_path
):
  fake_run('none', 0)
  new = {'num_devices': 2, 'checkpoint_seconds': 1.0, 'momentum': None}
  assert len(belonging(tmp_path, 'none', **new)) == 1


def test_a_part_without_a_name_is_of_the_experiment(fake_run, tmp_path):
  path = fake_run('none', 0)
  # The key is the name; files of older versions do not repeat the name.
  augment = {'flip': {}, 'pad_crop': {'padding': 2}}
  record = json.loads((path / workdir.CONFIG).read_text())
  config = {**record['config'], 'data': {'name': 'x', 'augment': augment}}
  disk.write_json(path / workdir.CONFIG, {**record, 'config': config})
  found = runs.load(str(tmp_path))
  point = points.resolve(ml_collections.ConfigDict(config), {}, 'x')
  assert runs.of_experiment(found, [point], set()) == found
  assert runs.absent(found, [], [point]) == []
  assert found[0].value('data.augment.flip.name') == 'flip'
  augment['flip']['probability'] = 0.25
  other = points.resolve(ml_collections.ConfigDict(config), {}, 'x')
  with pytest.raises(errors.UserError, match=r'flip\.probability=None there'):
    runs.of_experiment(found, [other], set())


def test_runs_that_are_swept_no_more_are_left_out(fake_run, tmp_path, capsys):
  fake_run('none', 0)
  fake_run('layer_norm', 0)
  (run,) = belonging(tmp_path, 'batch_norm', 'none')
  assert run.config['model.norm.name'] == 'none'
  (line,) = capsys.readouterr().out.splitlines()
  assert line == (
    f'left out, because not in sweep(): {tmp_path}/norm=layer_norm,seed=0'
    ' (model.norm.name=layer_norm there and batch_norm here)'
  )
  with pytest.raises(errors.UserError, match='layer_norm there and none here'):
    belonging(tmp_path / 'norm=layer_norm,seed=0', 'none')


def test_runs_of_another_config_are_not_taken_for_it(fake_run, tmp_path):
  fake_run('none', 0)
  fake_run('none', 1, batch_size=30)
  with pytest.raises(errors.UserError) as caught:
    belonging(tmp_path, 'none', 'batch_norm')
  assert str(caught.value) == (
    f'{tmp_path}/norm=none,seed=1 holds a run of another config'
    ' (batch_size=30 there and 60 here); give the --config that it was trained'
    ' with, and each --config.KEY=VALUE, or another --workdir'
  )


def test_an_unfinished_last_line_is_no_harm(fake_run):
  path = fake_run('none', 0, status=workdir.INCOMPLETE)
  whole = results.load(path).columns('step', 'test_accuracy')
  with open(path / workdir.METRICS, 'a') as file:
    file.write('{"step": 10')
  run = results.load(path)
  np.testing.assert_array_equal(run.columns('step', 'test_accuracy'), whole)


@pytest.mark.parametrize('keep', [0, 0.5, 0.999])
def test_metrics_that_end_too_early_are_damaged(keep, fake_run):
  path = fake_run('none', 0)
  text = (path / workdir.METRICS).read_text()
  (path / workdir.METRICS).write_text(text[: int(keep * len(text))])
  (run,) = runs.load(str(path))
  with pytest.raises(errors.UserError, match=r'metrics\.jsonl is damaged'):
    run.columns('step', 'test_accuracy')


def test_a_damaged_line_in_the_middle_is_not_passed_over(fake_run):
  path = fake_run('none', 0)
  lines = (path / workdir.METRICS).read_text().splitlines()
  lines[50] = lines[50][:-5]
  (path / workdir.METRICS).write_text('\n'.join(lines) + '\n')
  (run,) = runs.load(str(path))
  with pytest.raises(errors.UserError, match=r'metrics\.jsonl is damaged'):
    run.columns('step', 'test_accuracy')


def test_what_is_missing_is_named_with_what_is_there(fake_run):
  path = fake_run('none', 0)
  (run,) = runs.load(str(path))
  with pytest.raises(errors.UserError, match='no metric loss; there are'):
    run.columns('step', 'loss')
  with pytest.raises(errors.UserError, match=r"no 'first'; there are last/all"):
    run.probe('activations', 'first')
  with pytest.raises(errors.UserError, match="probe 'landscape'"):
    run.probe('landscape', 'last/unit')
  with pytest.raises(errors.UserError, match=r"no run has .*'model\.nrom'"):
    results.Runs([run]).select({'model.nrom': 'none'})


DAMAGE = {
  'rows cut short': lambda path: truncate(path / workdir.METRICS, 0.5),
  'no rows': lambda path: (path / workdir.METRICS).unlink(),
  'config cut short': lambda path: truncate(path / workdir.CONFIG, 0.5),
  'probe cut short': lambda path: truncate(path / 'probes/last.npz', 0.5),
  'no probe': lambda path: (path / 'probes/last.npz').unlink(),
}


def truncate(path, part):
  content = path.read_bytes()
  path.write_bytes(content[: int(part * len(content))])


@pytest.mark.parametrize('damage', DAMAGE)
def test_an_unreadable_run_is_counted_and_the_others_are_judged(
  damage, fake_run, tmp_path, capsys
):
  for seed in range(3):
    path = fake_run('none', seed)
    record = json.loads((path / workdir.CONFIG).read_text())
    record['config']['probes'] = {'last': {'name': 'activations'}}
    (path / workdir.CONFIG).write_text(json.dumps(record))
    workdir.write_probe(path, 'last', {'step': np.arange(2)})
  DAMAGE[damage](path)
  points = [{**record['config'], 'seed': seed} for seed in range(4)]
  loaded = runs.of_experiment(runs.load(str(tmp_path)), points, {'seed'})
  found, damaged = runs.readable(loaded)
  absent = runs.absent(found, damaged, points)
  assert [run.config['seed'] for run in found] == [0, 1]
  reason = 'missing' if 'config' in damage else 'unreadable'
  assert [(run.config['seed'], run.reason) for run in absent] == [
    (2, reason),
    (3, 'missing'),
  ]
  out = capsys.readouterr().out
  assert 'left out, because unreadable: ' in out
  assert f'{path}' in out
  assert 'missing: 1 of 4 runs of sweep()' in out or 'config' in damage


def test_a_copy_of_a_folder_is_no_further_seed(fake_run, tmp_path, capsys):
  path = fake_run('none', 0)
  fake_run('none', 1)
  shutil.copytree(path, tmp_path / 'zz copy')
  loaded = runs.load(str(tmp_path))
  found = runs.without_copies(loaded)
  assert [run.path for run in found] == [run.path for run in loaded[:2]]
  assert capsys.readouterr().out == (
    f'left out, because {path} has the same config: {tmp_path}/zz copy\n'
  )


def test_a_done_run_and_a_whole_copy_stay(fake_run, tmp_path):
  path = fake_run('none', 0)
  copy = shutil.copytree(path, tmp_path / 'zz copy')
  workdir.write_status(path, workdir.Status(workdir.DIVERGED, 1000))
  (kept,) = runs.without_copies(runs.load(str(tmp_path)))
  assert kept.path == copy
  workdir.write_status(path, workdir.Status(workdir.DONE, 1000))
  truncate(path / workdir.METRICS, 0.5)
  whole, damaged = runs.readable(runs.load(str(tmp_path)))
  assert [run.path for run in runs.without_copies(whole)] == [copy]
  assert [run.path for run in damaged] == [path]


def test_rows_without_their_end_are_unreadable(fake_run, tmp_path):
  path = fake_run('none', 0)
  text = (path / workdir.METRICS).read_text()
  (path / workdir.METRICS).write_text(text[: len(text) // 2])
  # A run of an older version has no digest in its status.
  disk.write_json(path / workdir.STATUS, {'status': 'done', 'step': 1000})
  whole, (run,) = runs.readable(runs.load(str(tmp_path)))
  assert (whole, run.path) == ([], path)


def test_runs_that_differ_in_devices_only_are_no_copies(fake_run, tmp_path):
  for seed, devices in ((0, 1), (1, 2), (2, None)):
    path = fake_run('none', seed)
    record = workdir.read_record(path)
    record['config'] |= {'seed': 0, 'num_devices': devices}
    disk.write_json(path / workdir.CONFIG, record)
  assert len(runs.without_copies(runs.load(str(tmp_path)))) == 3


def test_a_diverged_run_of_another_length_is_of_the_experiment(
  fake_run, tmp_path
):
  fake_run('none', 0)
  fake_run('none', 1, status=workdir.DIVERGED, num_steps=500)
  assert len(belonging(tmp_path, 'none')) == 2


def test_runs_that_differ_in_any_key_are_no_copies(fake_run, tmp_path):
  path = fake_run('none', 0)
  for name, changes in {
    'a': {'batch_size': 30},
    'b': {'num_devices': 2},
    'c': {'num_devices': 4},
    'd': {'checkpoint_seconds': 1.0},
    'e': {'num_devices': None, 'checkpoint_seconds': None},
    'f': {'num_devices': [2, 1]},
  }.items():
    shutil.copytree(path, tmp_path / name)
    record = json.loads((path / workdir.CONFIG).read_text())
    record['config'].update(changes)
    (tmp_path / name / workdir.CONFIG).write_text(json.dumps(record))
  loaded = runs.load(str(tmp_path))
  # A file has a list where a config of Python has a tuple.
  config = {**loaded[5].config, 'num_devices': (2, 1)}
  last = dataclasses.replace(loaded[5], path=tmp_path / 'z', config=config)
  found = runs.without_copies([*loaded, last])
  assert [run.path.name for run in found] == list('abcdef')


def with_copy(fake_run, tmp_path, *, name, status=workdir.DONE):
  """A run with a copy, which has a status; the name decides the order."""
  path = fake_run('none', 0)
  copy = tmp_path / name
  shutil.copytree(path, copy)
  workdir.write_status(copy, workdir.Status(status, 1000))
  return path, copy


@pytest.mark.parametrize('name', ['a copy', 'zz copy'])
def test_a_copy_that_diverged_does_not_displace_a_run(name, fake_run, tmp_path):
  path, _ = with_copy(fake_run, tmp_path, name=name, status='diverged')
  (run,) = runs.without_copies(runs.load(str(tmp_path)))
  assert run.path == path


def test_a_damaged_original_does_not_displace_a_copy(
  fake_run, tmp_path, capsys
):
  path, copy = with_copy(fake_run, tmp_path, name='zz copy')
  truncate(path / workdir.METRICS, 0.5)
  config = workdir.read_config(copy)
  report = {'claims': []}
  writing.write(report, str(tmp_path), [config], {'seed'}, ['json'])
  out = capsys.readouterr().out
  assert f'left out, because unreadable: {path} (' in out
  assert 'same config' not in out
  assert 'of sweep()' not in out
  (row,) = json.loads((tmp_path / 'report' / 'runs.json').read_text())
  assert row['run'] == str(copy)


def test_an_unknown_status_is_named_with_the_path(fake_run, tmp_path, capsys):
  fake_run('none', 0)
  path = fake_run('none', 1, status='odd')
  assert len(runs.load(str(tmp_path))) == 1
  out = capsys.readouterr().out
  assert out == f'left out, because odd: {path}\n'


def test_rows_that_end_too_early_are_unreadable(fake_run, tmp_path):
  path = fake_run('none', 0)
  truncate(path / workdir.METRICS, 0.5)
  # The new status has the digest of the rows that are left.
  workdir.write_status(path, workdir.Status(workdir.DONE, 1000))
  found, damaged = runs.readable(runs.load(str(tmp_path)))
  assert (found, [run.path for run in damaged]) == ([], [path])


def test_a_run_that_diverged_is_of_a_longer_experiment(fake_run, tmp_path):
  fake_run('none', 0)
  fake_run('none', 1, num_steps=500, status=workdir.DIVERGED)
  found = belonging(tmp_path, 'none')
  assert [run.config['num_steps'] for run in found] == [1000, 500]
  points = [{**found[0].config, 'seed': seed} for seed in range(2)]
  assert runs.absent(found, [], points) == []
