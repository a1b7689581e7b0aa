"""Evaluation of averaged weights, and configs of older versions."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

import bn_research
from bn_research import errors, older, training, workdir

pytestmark = pytest.mark.usefixtures('loaded')


@pytest.fixture
def small(config):
  config['probes'] = {}
  config['num_steps'], config['eval']['num_points'] = 12, 3
  return config


def rows(directory):
  found = workdir.read_metrics(directory)
  for row in found:
    del row['seconds']
  return found


def test_the_average_is_evaluated_with_moments_of_its_own(
  small, tmp_path, dataset, results
):
  small['optimizer']['average'] = {'name': 'ema', 'decay': 0.8}
  small['eval'] |= {'weights': 'average', 'population': 'reestimated'}
  training.train(small, tmp_path)
  model = bn_research.load(tmp_path).model()
  arrays = results(tmp_path)[2]

  def averaged(path, leaf):
    # A checkpoint has texts in the place of the numbers of layers.
    name = ''.join(f"['{part.key}']" for part in path)
    (found,) = (v for k, v in arrays.items() if f"['average']{name}" in k)
    return np.frombuffer(found, np.float32).reshape(leaf.shape)

  params = nnx.as_pure(nnx.state(model, nnx.Param))
  params = jax.tree_util.tree_map_with_path(averaged, params)
  float64 = lambda x: np.asarray(x, np.float64)
  train, test = (
    float64(split.images).reshape(len(split.images), -1) / 255
    for split in (dataset.train, dataset.test)
  )
  for place in params['dense']:
    kernel = float64(params['dense'][place]['kernel'])
    norm = jax.tree.map(float64, params['norms'][place])
    train, test = train @ kernel, test @ kernel
    mean, deviation = train.mean(0), np.sqrt(train.var(0) + 1e-5)
    sigmoid = lambda z, m=mean, d=deviation, n=norm: (
      1 / (1 + np.exp(-((z - m) / d * n['scale'] + n['bias'])))
    )
    train, test = sigmoid(train), sigmoid(test)
  output = jax.tree.map(float64, params['output'])
  logits = test @ output['kernel'] + output['bias']
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  loss = -log_p[np.arange(len(test)), dataset.test.labels].mean()
  np.testing.assert_allclose(rows(tmp_path)[-1]['test_loss'], loss, rtol=1e-3)


@pytest.mark.slow
def test_an_average_without_memory_is_the_last_weights(small, tmp_path):
  small['optimizer']['average'] = {'name': 'ema', 'decay': 0.0}
  small['eval']['population'] = 'reestimated'
  training.train(small, tmp_path / 'last')
  small['eval']['weights'] = 'average'
  training.train(small, tmp_path / 'average')
  assert rows(tmp_path / 'last') == rows(tmp_path / 'average')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({}, "weights='average' needs an average; set config.optimizer.average"),
    (
      {'average': 'ema'},
      "the running moments belong to the last weights; set .*'reestimated'",
    ),
  ],
)
def test_weights_without_an_average_or_moments_are_told(
  small, tmp_path, changes, message
):
  small['eval']['weights'] = 'average'
  small['optimizer'] |= changes
  with pytest.raises(errors.UserError, match=message):
    training.train(small, tmp_path)


@pytest.mark.slow
def test_a_model_without_running_moments_needs_no_new_moments(small, tmp_path):
  small['eval']['weights'] = 'average'
  small['model']['norm'] = {'name': 'layer_norm'}
  small['optimizer']['average'] = 'ema'
  training.train(small, tmp_path)
  assert np.isfinite(rows(tmp_path)[-1]['test_loss'])


def test_weights_in_moving_coordinates_have_no_average(small, tmp_path):
  small['optimizer']['average'] = 'ema'
  small['model'] |= {'dense': {'name': 'prong'}, 'norm': {'name': 'none'}}
  with pytest.raises(errors.UserError, match='coordinates of the weights move'):
    training.train(small, tmp_path)


@pytest.mark.slow
def test_a_config_of_an_older_version_goes_on(small, tmp_path, results):
  whole = tmp_path / 'whole'
  training.train(small | {'num_steps': 18}, whole)
  old = json.loads(json.dumps(small))
  for key in older.ADDED:
    section = old
    *parents, name = key.split('.')
    for parent in parents:
      section = section[parent]
    del section[name]
  directory = tmp_path / 'old'
  training.train(old, directory)
  training.train(small | {'num_steps': 18}, directory)
  assert results(directory)[2].keys() == results(whole)[2].keys()
  changed = small | {'num_steps': 18, 'label_smoothing': 0.1}
  with pytest.raises(errors.UserError, match='label_smoothing=0'):
    training.train(changed, directory)
