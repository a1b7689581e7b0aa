"""A trained network, from its workdir."""

import numpy as np
import pytest

import bn_research
from bn_research import data, errors, training, workdir


@pytest.mark.usefixtures('loaded')
def test_the_model_is_as_good_as_the_last_row_says(config, dataset, tmp_path):
  training.train(config, tmp_path)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  run = bn_research.load(tmp_path)
  model = run.model()
  logits = model(data.to_input(dataset.test.images), train=False)
  accuracy = np.mean(np.argmax(logits, -1) == dataset.test.labels)
  np.testing.assert_allclose(accuracy, run.metrics['test_accuracy'][-1])
  after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  assert after == before


@pytest.mark.usefixtures('loaded')
def test_starts_are_added_up(config, tmp_path):
  training.train(config, tmp_path)
  (tmp_path / workdir.STATUS).unlink()
  training.train(config, tmp_path)
  first, second = workdir.read_record(tmp_path)['starts']
  assert first['time'] <= second['time']
  assert first['versions'] == second['versions']


@pytest.mark.usefixtures('loaded')
def test_what_cannot_be_restored_is_told(config, tmp_path):
  training.train(config, tmp_path)
  run = bn_research.load(tmp_path)
  newest = tmp_path / workdir.CHECKPOINTS / '60' / 'state'
  for path in newest.rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  with pytest.raises(errors.UserError, match='is damaged'):
    run.model()
