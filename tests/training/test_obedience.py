"""A run obeys its config, and writes in an order that loses nothing."""

import math
import os
import signal

import numpy as np
import pytest

from bn_research import data, errors, training, workdir
from bn_research.training import checkpoints, feeding, recorder
from bn_research.training.programs import Programs

pytestmark = pytest.mark.usefixtures('loaded')


def losses(directory):
  return [row['test_loss'] for row in workdir.read_metrics(directory)]


def test_the_seed_draws_the_weights_and_the_order(
  config, tmp_path, monkeypatch
):
  seeds, draw = [], data.batch_indices

  def noted(num_examples, batch_size, seed, start, stop):
    seeds.append(seed)
    return draw(num_examples, batch_size, seed, start, stop)

  monkeypatch.setattr(data, 'batch_indices', noted)
  for seed in (3, 4):
    seeds.clear()
    training.train(config | {'seed': seed}, tmp_path / str(seed))
    # The first call checks whether a batch fits.
    assert set(seeds[1:]) == {seed}
  first, second = losses(tmp_path / '3'), losses(tmp_path / '4')
  assert first[0] != second[0]
  assert not np.array_equal(draw(100, 16, 3, 0, 6), draw(100, 16, 4, 0, 6))


def test_inputs_are_normalized_by_the_training_split(
  config, dataset, tmp_path, monkeypatch
):
  given, create = [], data.input_function

  def noted(section, images):
    given.append(images)
    return create(section, images)

  monkeypatch.setattr(data, 'input_function', noted)
  training.train(config | {'num_steps': 1}, tmp_path)
  assert all(images is dataset.train.images for images in given)


def test_a_run_is_done_when_its_last_checkpoint_is_on_the_disk(
  config, tmp_path, monkeypatch
):
  close, seen = checkpoints.Checkpoints.close, []

  def noted(self):
    seen.append(workdir.read_status(tmp_path).status)
    close(self)
    seen.append((tmp_path / workdir.CHECKPOINTS / '60').exists())

  monkeypatch.setattr(checkpoints.Checkpoints, 'close', noted)
  training.train(config, tmp_path)
  assert seen[:2] == [workdir.INCOMPLETE, True]


def test_what_was_measured_before_a_divergence_is_kept(
  config, tmp_path, monkeypatch
):
  train = Programs.train

  def diverge(self, state, start, stop):
    state = train(self, state, start, stop)
    return state._replace(loss=state.loss * math.nan) if stop > 30 else state

  monkeypatch.setattr(Programs, 'train', diverge)
  status = training.train(config, tmp_path)
  assert status.status == workdir.DIVERGED
  assert [row['step'] for row in workdir.read_metrics(tmp_path)] == [0, 15, 30]
  probe = workdir.read_probe(tmp_path, 'activations')
  np.testing.assert_array_equal(probe['step'], [0, 1, 3, 8, 22])


def test_seconds_go_on_after_a_stop(config, tmp_path, monkeypatch):
  train = Programs.train

  def stop_at(self, state, start, stop):
    if start >= 30:
      os.kill(os.getpid(), signal.SIGTERM)
    return train(self, state, start, stop)

  with monkeypatch.context() as patch:
    patch.setattr(Programs, 'train', stop_at)
    patch.setattr(recorder.time, 'monotonic', iter(range(10**6)).__next__)
    with pytest.raises(training.Interrupted):
      training.train(config, tmp_path)
  before = workdir.read_metrics(tmp_path)[-1]['seconds']
  assert before > 5
  training.train(config, tmp_path)
  seconds = [row['seconds'] for row in workdir.read_metrics(tmp_path)]
  assert seconds == sorted(seconds)
  assert seconds[-1] >= before


def test_a_row_that_is_lost_at_the_step_of_the_checkpoint_is_missed(
  config, tmp_path
):
  training.train(config, tmp_path)
  rows = workdir.truncate_metrics(tmp_path, 59)
  assert rows[-1]['step'] == 45

  class Nothing:
    probes = ()

  with pytest.raises(errors.UserError, match='cannot be read from step 60'):
    recorder.Recorder(config, tmp_path, Nothing(), 60)


def test_a_probe_sees_examples_of_all_classes(config):
  images = np.zeros((100, 1, 1, 1), np.uint8)
  labels = np.repeat(np.arange(4, dtype=np.int32), 25)  # sorted by class
  split = data.Split(images, labels)
  config['probes']['activations']['num_examples'] = 8
  found = feeding.probe_examples(
    config, data.Dataset('sorted', split, split, 4), lambda arrays: arrays
  )
  np.testing.assert_array_equal(
    found['activations'].labels, [0, 0, 1, 1, 2, 2, 3, 3]
  )
