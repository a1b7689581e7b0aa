"""Workdirs as objects."""

import csv
import json
import sys

import numpy as np
import pytest

import bn_research
from bn_research import disk, errors, workdir


@pytest.fixture
def folder(tmp_path):
  """Four runs that differ in the norm and the seed; one is not done."""
  for norm in ('batch_norm', 'none'):
    for seed in range(2):
      path = tmp_path / f'{norm}-{seed}'
      config = {'seed': seed, 'model': {'norm': {'name': norm}}, 'widths': [3]}
      disk.write_json(path / workdir.CONFIG, {'config': config})
      rows = [
        {'step': 0, 'test_accuracy': 0.1, 'seconds': 0.0},
        {'step': 5, 'train_loss': 2.0, 'test_accuracy': 0.5, 'seconds': 1.0},
      ]
      text = ''.join(json.dumps(row) + '\n' for row in rows)
      (path / workdir.METRICS).write_text(text)
      workdir.write_probe(path, 'p', {'step': np.asarray([0]), 'x': np.ones(1)})
      is_last = norm == 'none' and seed
      status = workdir.INCOMPLETE if is_last else workdir.DONE
      workdir.write_status(path, workdir.Status(status, 5))
  return tmp_path


def test_a_run(folder):
  run = bn_research.load(folder / 'none-1')
  assert (run.config['seed'], run.is_done) == (1, False)
  assert run.status.status == workdir.INCOMPLETE
  np.testing.assert_array_equal(run.metrics['test_accuracy'], [0.1, 0.5])
  np.testing.assert_array_equal(run.metrics['train_loss'], [np.nan, 2.0])
  np.testing.assert_array_equal(run.probes['p']['x'], [1.0])


def test_many_runs_are_selected_by_their_settings(folder):
  runs = bn_research.load_all(folder)
  assert len(runs) == 4
  assert runs.settings() == ['seed', 'model.norm.name']
  chosen = runs.select({'model.norm.name': 'none'}, seed=1)
  assert [run.path.name for run in chosen] == ['none-1']
  assert len(runs.select(model__norm__name='batch_norm')) == 2
  assert len(runs.select(widths=(3,))) == len(runs.select(widths=[3])) == 4
  # Absent is None: only some of the configs have the key.
  path = folder / 'none-1' / workdir.CONFIG
  record = json.loads(path.read_text())
  record['config']['model']['norm']['epsilon'] = 0.5
  path.write_text(json.dumps(record))
  runs = bn_research.load_all(folder)
  assert len(runs.select({'model.norm.epsilon': 0.5})) == 1
  assert len(runs.select({'model.norm.epsilon': None})) == 3
  with pytest.raises(errors.UserError, match="no run has the setting 'sede'"):
    runs.select(sede=1)


def test_a_table_has_the_settings_that_differ(folder, tmp_path):
  runs = bn_research.load_all(folder)
  runs.to_csv(tmp_path / 'table.csv')
  with open(tmp_path / 'table.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 8
  assert list(rows[0])[:4] == ['run', 'status', 'seed', 'model.norm.name']
  assert rows[1]['train_loss'] == '2.0'
  assert {row['status'] for row in rows} == {'done', 'incomplete'}


def test_pandas_is_optional(folder, monkeypatch):
  runs = bn_research.load_all(folder)
  monkeypatch.setitem(sys.modules, 'pandas', None)
  with pytest.raises(errors.UserError, match='pip install pandas'):
    runs.to_pandas()


def test_what_is_no_run_is_told(tmp_path):
  with pytest.raises(errors.UserError, match='is this the workdir of a run'):
    bn_research.load(tmp_path)
  with pytest.raises(errors.UserError, match='has no runs'):
    bn_research.load_all(tmp_path)


def test_a_later_format_is_refused(folder):
  path = folder / 'none-0' / workdir.CONFIG
  disk.write_json(path, {'format': 99, 'config': {}})
  with pytest.raises(errors.UserError, match=r'format 99, .* up to 2; '):
    bn_research.load(folder / 'none-0')
