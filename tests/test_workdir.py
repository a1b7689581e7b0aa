import numpy as np
import pytest

from bn_research import comparison, disk, errors, older, workdir


def test_a_status_comes_back(tmp_path):
  status = workdir.Status(workdir.DIVERGED, 7, 'the loss is nan')
  workdir.write_status(tmp_path / 'new', status)
  assert workdir.read_status(tmp_path / 'new') == status


@pytest.mark.parametrize(
  'text', ['', '{', '[]', '{"status": "done"}', '{"status": 1, "step": "x"}']
)
def test_an_unreadable_status_is_incomplete(tmp_path, text):
  assert workdir.read_status(tmp_path).status == workdir.INCOMPLETE
  (tmp_path / workdir.STATUS).write_text(text)
  assert workdir.read_status(tmp_path) == workdir.Status()


def test_a_config_comes_back(tmp_path):
  assert not workdir.has_config(tmp_path)
  record = {'config': {'seed': 1}, 'devices': ['cpu:0']}
  disk.write_json(tmp_path / workdir.CONFIG, record)
  assert workdir.has_config(tmp_path)
  # A config of an older version gets the keys that the version lacks.
  assert workdir.read_config(tmp_path) == older.completed({'seed': 1})
  completed = {**record, 'config': older.completed({'seed': 1})}
  assert workdir.read_record(tmp_path) == completed


def test_no_config_is_told(tmp_path):
  with pytest.raises(errors.UserError, match='is this the workdir of a run'):
    workdir.read_config(tmp_path)


@pytest.mark.parametrize(
  'text', ['', '[]', '{}', '{"config": ', '{"config": 3}']
)
def test_a_damaged_config_is_told(tmp_path, text):
  (tmp_path / workdir.CONFIG).write_text(text)
  with pytest.raises(errors.UserError, match='damaged'):
    workdir.read_config(tmp_path)


def test_rows_end_at_an_unfinished_line(tmp_path):
  assert workdir.read_metrics(tmp_path) == []
  path = tmp_path / workdir.METRICS
  path.write_text('{"step": 0}\n{"step": 5}\n{"step": 10}\n{"ste')
  rows = [{'step': 0}, {'step': 5}, {'step': 10}]
  assert workdir.read_metrics(tmp_path) == rows
  assert workdir.truncate_metrics(tmp_path, 7) == rows[:2]
  assert path.read_text() == '{"step": 0}\n{"step": 5}\n'


@pytest.mark.parametrize('line', ['[]', '3', '{}', '{"step": "x"}', '{"step"'])
def test_rows_end_at_a_line_that_is_none(tmp_path, line):
  (tmp_path / workdir.METRICS).write_text(
    f'{{"step": 0, "a": 1}}\n{line}\n{{"step": 9}}\n'
  )
  assert workdir.read_metrics(tmp_path) == [{'step': 0, 'a': 1}]


def test_a_probe_comes_back(tmp_path):
  arrays = {
    'step': np.arange(3),
    'hidden_1/input/all': np.ones((3, 2), np.float32),
  }
  workdir.write_probe(tmp_path, 'p', arrays)
  found = workdir.read_probe(tmp_path, 'p')
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


def test_the_same_arrays_are_the_same_bytes(tmp_path):
  paths = []
  for name in ('p', 'q'):
    workdir.write_probe(tmp_path, name, {'step': np.arange(3)})
    paths.append(tmp_path / workdir.PROBES / f'{name}.npz')
  assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_missing_probe_is_told(tmp_path):
  with pytest.raises(errors.UserError, match='does not exist'):
    workdir.read_probe(tmp_path, 'p')


@pytest.mark.parametrize('size', [0, 10, -10])
def test_a_damaged_probe_is_told(tmp_path, size):
  workdir.write_probe(tmp_path, 'p', {'step': np.arange(3)})
  path = tmp_path / workdir.PROBES / 'p.npz'
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(errors.UserError, match='damaged'):
    workdir.read_probe(tmp_path, 'p')


def test_a_name_that_is_too_long_is_told_before_anything_runs(tmp_path):
  with pytest.raises(errors.UserError, match='choose a shorter --workdir'):
    comparison.check_same_config(tmp_path / ('a' * 300), {})
