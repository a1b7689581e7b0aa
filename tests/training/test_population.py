"""Evaluation with moments of the whole training split: Algorithm 2."""

import jax
import numpy as np
import pytest
from flax import nnx

import bn_research
from bn_research import errors, training, workdir
from tests.quick import some

pytestmark = pytest.mark.usefixtures('loaded')


@pytest.fixture
def trained(config, tmp_path):
  """Trains with a population, and returns the workdir."""
  config['model']['norm'] = {'name': 'batch_norm', 'momentum': 0.9}
  config['num_steps'] = 20
  config['probes'] = {}

  def train(population, norm=None, num_devices=1):
    config['eval']['population'] = population
    config['model']['norm'] |= norm or {}
    config['num_devices'] = num_devices
    directory = tmp_path / f'{population} {norm} {num_devices}'
    training.train(config, directory)
    return directory

  return train


def last_row(directory):
  return workdir.read_metrics(directory)[-1]


def by_hand(directory, dataset):
  """Loss and accuracy on the test split, in NumPy, from the saved weights."""
  model = bn_research.load(directory).model()
  get = lambda variable: np.asarray(variable[...], np.float64)
  train, test = (
    np.asarray(split.images, np.float64).reshape(len(split.images), -1) / 255
    for split in (dataset.train, dataset.test)
  )
  for dense, norm in zip(model.dense, model.norms, strict=True):
    train, test = train @ get(dense.kernel), test @ get(dense.kernel)
    mean, deviation = train.mean(0), np.sqrt(train.var(0) + 1e-5)
    train, test = (
      1
      / (
        1 + np.exp(-((z - mean) / deviation * get(norm.scale) + get(norm.bias)))
      )
      for z in (train, test)
    )
  logits = test @ get(model.output.kernel) + get(model.output.bias)
  labels = dataset.test.labels
  p = np.exp(logits - logits.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  loss = -np.log(p[np.arange(len(labels)), labels]).mean()
  return loss, (logits.argmax(1) == labels).mean()


def test_the_moments_are_those_of_the_training_split(trained, dataset):
  row = last_row(trained('reestimated'))
  loss, accuracy = by_hand(trained('reestimated'), dataset)
  np.testing.assert_allclose(row['test_loss'], loss, rtol=1e-4)
  np.testing.assert_allclose(row['test_accuracy'], accuracy, rtol=1e-6)


def test_training_goes_on_as_if_nothing_were_measured(trained):
  models = [
    bn_research.load(trained(population)).model()
    for population in ('running', 'reestimated')
  ]
  running, reestimated = (jax.tree.leaves(nnx.state(m)) for m in models)
  for a, b in zip(running, reestimated, strict=True):
    np.testing.assert_array_equal(a, b)
  losses = [
    last_row(trained(population))['test_loss']
    for population in ('running', 'reestimated')
  ]
  assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize('num_devices', some([], [8, 3]))
def test_many_devices_are_as_one(trained, config, num_devices):
  config['batch_size'] = 24
  config['eval']['num_points'] = 1
  one, many = (trained('reestimated', None, n) for n in (1, num_devices))
  np.testing.assert_allclose(
    last_row(one)['test_loss'], last_row(many)['test_loss'], rtol=1e-3
  )


def test_without_moments_to_remember_nothing_changes(trained, config):
  config['model']['norm'] = {'name': 'layer_norm'}
  rows = [last_row(trained(p)) for p in ('running', 'reestimated')]
  assert rows[0]['test_loss'] == rows[1]['test_loss']


def test_moments_that_cannot_be_pooled_are_named(trained, config):
  config['model']['norm'] = {'name': 'evonorm_b0'}
  with pytest.raises(errors.UserError, match=r'eval.population: .*pooled'):
    trained('reestimated')
