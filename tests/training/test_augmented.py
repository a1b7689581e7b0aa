"""Augmentation inside the training step of a run."""

import copy

import jax
import numpy as np
import pytest

from bn_research import data, training, workdir
from bn_research.training import configuration, mesh, programs
from tests.quick import some
from tests.training.conftest import CONFIG

AUGMENT = {
  'pad_crop': {'padding': 2},
  'flip': {},
  'cutout': {'size': 3},
}


@pytest.fixture
def augmented(loaded):
  del loaded
  config = copy.deepcopy(CONFIG)
  config['data']['augment'] = AUGMENT
  return config


def created(config, dataset, num_devices=1):
  config = configuration.resolve({**config, 'num_devices': num_devices})
  devices = mesh.create(num_devices, config['batch_size'])
  with jax.set_mesh(devices):
    return devices, programs.Programs(config, dataset, devices)


def after(config, dataset, num_steps, num_devices=1):
  devices, made = created(config, dataset, num_devices)
  with jax.set_mesh(devices):
    return jax.device_get(made.train(made.init(), 0, num_steps))


def test_the_draws_are_a_function_of_seed_and_step(
  augmented, dataset, monkeypatch
):
  """The step sees the images of the augmentation, with a key of its own."""
  seen = []

  def note(images):
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), images)
    return data.to_input(images)

  monkeypatch.setattr(data, 'input_function', lambda *args: note)
  after(augmented, dataset, 3)
  config = configuration.resolve(augmented)
  augment = data.augmentation.create(config['data'], dataset.train.images)
  key = jax.random.fold_in(jax.random.key(config['seed']), 2**32 - 1)
  batches = data.batch_indices(
    len(dataset.train.images), config['batch_size'], config['seed'], 0, 3
  )
  assert len(seen) == 3
  for t, batch in enumerate(batches):
    images = dataset.train.images[batch]
    expected = augment(jax.random.fold_in(key, t), images)
    assert (np.asarray(expected) != images).any()
    np.testing.assert_array_equal(seen[t], expected)


@pytest.mark.parametrize('num_devices', some([], [2, 8]))
def test_any_number_of_devices_draws_the_same(augmented, dataset, num_devices):
  one = after(augmented, dataset, 5)
  many = after(augmented, dataset, 5, num_devices)
  for a, b in zip(
    jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True
  ):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_evaluation_sees_the_stored_images(augmented, dataset):
  plain = copy.deepcopy(augmented)
  del plain['data']['augment']
  results = []
  for config in (augmented, plain):
    devices, made = created(config, dataset)
    with jax.set_mesh(devices):
      results.append(made.evaluate(made.init()))
  assert results[0] == results[1]


def test_an_augmented_run_goes_on_to_the_same_bits(
  augmented, tmp_path, monkeypatch, results
):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  training.train(augmented, whole)
  train, calls = programs.Programs.train, []

  def stop(self, train_state, start, end):
    calls.append(end)
    if end > 30:
      raise KeyboardInterrupt
    return train(self, train_state, start, end)

  with monkeypatch.context() as patch:
    patch.setattr(programs.Programs, 'train', stop)
    with pytest.raises(KeyboardInterrupt):
      training.train({**augmented, 'checkpoint_seconds': 0.0}, cut)
  assert workdir.read_metrics(cut)[-1]['step'] < 60
  training.train({**augmented, 'checkpoint_seconds': 0.0}, cut)
  assert results(cut) == results(whole)
