import errno
import json
import os
import types
from typing import ClassVar

import numpy as np
import pytest

from bn_research import errors, workdir
from bn_research.training import metrics, recorder, tensorboard

CONFIG = {'seed': 3, 'model': {'norm': {'name': 'none'}, 'widths': [2, 3]}}
ROWS = [{'step': step, 'test_loss': 1 / (1 + step)} for step in (0, 5, 10)]


@pytest.fixture
def written(tmp_path):
  log = metrics.Metrics(tmp_path, -1, CONFIG)
  for row in ROWS:
    log.append(row)
  log.flush()
  log.close()
  return tmp_path


def test_rows_come_back(written):
  assert workdir.read_metrics(written) == ROWS


def test_a_new_run_drops_what_a_killed_one_left(written):
  metrics.Metrics(written, -1, CONFIG).close()
  assert workdir.read_metrics(written) == []


def test_going_on_drops_later_rows_and_half_a_line(written):
  with open(written / workdir.METRICS, 'a') as file:
    file.write('{"step": 1')
  log = metrics.Metrics(written, 5, CONFIG)
  assert log.rows == ROWS[:2]
  log.append({'step': 7})
  log.close()
  assert workdir.read_metrics(written) == [*ROWS[:2], {'step': 7}]


def events(directory):
  from tensorboardX.proto import event_pb2

  [path] = directory.glob('events.out.tfevents.*')
  content = path.read_bytes()
  while content:
    length = int.from_bytes(content[:8], 'little')
    yield event_pb2.Event.FromString(content[12 : 12 + length])
    content = content[12 + length + 4 :]


def test_tensorboard_gets_a_copy(written):
  found = [
    (event.step, value.tag, value.simple_value)
    for event in events(written)
    for value in event.summary.value
    if not value.tag.startswith('_hparams_')
  ]
  expected = [(row['step'], 'test_loss', row['test_loss']) for row in ROWS]
  assert [(s, t) for s, t, _ in found] == [(s, t) for s, t, _ in expected]
  np.testing.assert_allclose([v for *_, v in found], [v for *_, v in expected])


def test_tensorboard_gets_the_settings(written):
  from tensorboardX.proto import plugin_hparams_pb2

  (content,) = (
    value.metadata.plugin_data.content
    for event in events(written)
    for value in event.summary.value
    if value.tag == '_hparams_/session_start_info'
  )
  data = plugin_hparams_pb2.HParamsPluginData.FromString(content)
  settings = data.session_start_info.hparams
  assert settings['seed'].number_value == 3
  assert settings['model.norm.name'].string_value == 'none'
  assert settings['model.widths'].string_value == '[2, 3]'


def test_tensorboard_does_not_wait_for_a_checkpoint(tmp_path, monkeypatch):
  monkeypatch.setattr(tensorboard, '_SECONDS', 0.0)
  log = metrics.Metrics(tmp_path, -1, CONFIG)
  log.append(ROWS[0])
  tags = [v.tag for event in events(tmp_path) for v in event.summary.value]
  log.close()
  assert tags[-1] == 'test_loss'


@pytest.mark.filterwarnings('error')
def test_tensorboard_shows_what_probes_measure(tmp_path):
  huge, same = np.full(3, 3e38, np.float32), np.full(4, 2.5, np.float32)
  spread = np.arange(8, dtype=np.int32).reshape(2, 4)
  odd = np.array([np.nan, 1])
  log = metrics.Metrics(tmp_path, -1, CONFIG)
  log.show(
    3,
    'mine',
    {
      'number': np.float32(1.5),
      'huge': huge,
      'same': same,
      'spread': spread,
      'odd': odd,
      'empty': np.zeros(0),
      'long': np.zeros(10**6),
      'complex': np.complex64(1j),
      'infinite': np.float32(np.inf),
    },
  )
  log.flush()
  log.close()
  found = {
    value.tag: (event.step, value)
    for event in events(tmp_path)
    for value in event.summary.value
    if value.tag.startswith('mine/')
  }
  names = ('number', 'huge', 'same', 'spread')
  assert found.keys() == {f'mine/{name}' for name in names}
  assert {step for step, _ in found.values()} == {3}
  assert found['mine/number'][1].simple_value == 1.5
  for name, array in (('huge', huge), ('same', same), ('spread', spread)):
    histogram = found[f'mine/{name}'][1].histo
    assert histogram.num == array.size
    assert (histogram.min, histogram.max) == (array.min(), array.max())
    assert sum(histogram.bucket) == array.size


def test_a_full_disk_is_one_line_and_loses_nothing(written, monkeypatch):
  log = metrics.Metrics(written, 10, CONFIG)

  def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(errors.UserError, match=r'No space left.*free some space'):
    log.flush()
  log.close()
  assert workdir.read_metrics(written) == ROWS


def test_a_probe_grows(tmp_path):
  constants = {'percentiles': np.array([50.0], np.float32)}
  log = metrics.ProbeLog(tmp_path, 'p', constants, -1)
  for step in (0, 4, 8):
    log.append(step, {'a': np.array([step, 1.0], np.float32)})
  log.flush()
  again = metrics.ProbeLog(tmp_path, 'p', constants, 4)
  again.append(6, {'a': np.array([6, 1.0], np.float32)})
  again.flush()
  arrays = workdir.read_probe(tmp_path, 'p')
  assert arrays.keys() == {'step', 'a', 'percentiles'}
  np.testing.assert_array_equal(arrays['step'], [0, 4, 6])
  assert arrays['step'].dtype == np.int64
  np.testing.assert_array_equal(arrays['a'], [[0, 1], [4, 1], [6, 1]])
  np.testing.assert_array_equal(arrays['percentiles'], [50])


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'a': np.ones(2), 'more': np.ones(1)}, r'more absent before, \(1,\) now'),
    ({'a': np.ones(3)}, r'a \(2,\) before, \(3,\) now'),
    ({}, r'a \(2,\) before, absent now'),
  ],
)
def test_a_probe_that_changed_is_told(tmp_path, arrays, message):
  log = metrics.ProbeLog(tmp_path, 'p', {}, -1)
  log.append(0, {'a': np.zeros(2)})
  log.flush()
  again = metrics.ProbeLog(tmp_path, 'p', {}, 0)
  with pytest.raises(errors.UserError, match=f"probe 'p'.*{message}"):
    again.append(4, arrays)
  np.testing.assert_array_equal(workdir.read_probe(tmp_path, 'p')['step'], [0])


@pytest.mark.parametrize('constants', [{'c': np.zeros(5)}, {'d': np.ones(5)}])
def test_constants_that_changed_are_told(tmp_path, constants):
  log = metrics.ProbeLog(tmp_path, 'p', {'c': np.ones(5)}, -1)
  log.append(0, {'a': np.zeros(2)})
  log.flush()
  with pytest.raises(errors.UserError, match=r"'p' .* changed .c "):
    metrics.ProbeLog(tmp_path, 'p', constants, 0)


def test_rows_are_json_one_a_line(written):
  lines = (written / workdir.METRICS).read_text().splitlines()
  assert [json.loads(line) for line in lines] == ROWS


class _Programs:
  """Programs of a run whose losses are known."""

  def evaluate(self, state):
    del state
    return {'test': {'accuracy': 0.5, 'loss': 1.0}}

  probes: ClassVar = {'activations': None}

  def probe(self, key, state):
    del key, state
    return {'hidden_1/input/unit': np.zeros(3, np.float32)}

  def zero(self):
    return 0.0


def _recorder(directory, step):
  config = {
    'num_steps': 20,
    'eval': {'num_points': 2, 'spacing': 'linear'},
    'batch_size': 1,
    'probes': {'activations': {}},
  }
  return recorder.Recorder(config, directory, _Programs(), step)


def test_train_loss_is_the_mean_since_the_last_row(tmp_path):
  measured = _recorder(tmp_path, -1)
  for step, total in ((0, 0.0), (10, 5.0), (20, 30.0)):
    measured.measure(
      types.SimpleNamespace(loss_sum=total, sums={}, _replace=lambda **_: None),
      step,
      {'grad_norm': np.float32(2)} if step else {},
    )
  measured.close()
  rows = workdir.read_metrics(tmp_path)
  assert [row.get('train_loss') for row in rows] == [None, 0.5, 3.0]
  assert [row.get('grad_norm') for row in rows] == [None, 2.0, 2.0]


def test_rows_that_cannot_be_read_are_not_thrown_away(tmp_path):
  lines = [json.dumps({'step': step, 'test_loss': 1.0}) for step in (0, 10)]
  path = tmp_path / workdir.METRICS
  path.write_text('{"step": \n' + lines[1] + '\n')
  before = path.read_text()
  with pytest.raises(errors.UserError, match='cannot be read from step 0'):
    _recorder(tmp_path, 10)
  assert path.read_text() == before
