"""Both routes of whitening at an interval, from a config to its files."""

import os
import signal

import numpy as np
import pytest

from bn_research import errors, optim, training, workdir
from bn_research.training.programs import Programs
from tests.quick import some

ROUTES = {
  'prong': {'dense': {'name': 'prong', 'every': 5, 'epsilon': 0.1}},
  'input_covariance': {
    'precondition': {'name': 'input_covariance', 'every': 5, 'epsilon': 0.1}
  },
}


@pytest.fixture
def trained(loaded, config, tmp_path):
  """Trains by a route, and returns the workdir."""
  del loaded

  def train(route, num_devices=1, name='run'):
    parts = ROUTES[route]
    config['model']['norm']['name'] = 'none'
    config['model']['dense'] = parts.get('dense')
    config['model']['dense_bias'] = True
    config['optimizer']['precondition'] = parts.get('precondition')
    config['optimizer']['learning_rate'] = 0.1
    config['num_devices'] = num_devices
    directory = tmp_path / f'{name}, {route} on {num_devices}'
    training.train(config, directory)
    return directory

  return train


def losses(directory):
  assert workdir.read_status(directory).status == workdir.DONE
  rows = workdir.read_metrics(directory)
  return np.asarray([row['test_loss'] for row in rows])


@pytest.mark.slow
def test_both_routes_are_one(trained):
  prong, precondition = map(losses, map(trained, ROUTES))
  assert np.isfinite(prong).all()
  assert prong[-1] < 0.5 * prong[0]
  np.testing.assert_allclose(prong, precondition, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('route', ROUTES)
def test_eight_devices_are_as_one(trained, route):
  np.testing.assert_allclose(
    losses(trained(route)), losses(trained(route, 8)), rtol=1e-3
  )


@pytest.mark.slow
@pytest.mark.parametrize('route', some(['prong'], ROUTES))
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
  trained, results, monkeypatch, route
):
  take = Programs.train

  def take_and_stop(self, state, start, stop):
    if start:
      os.kill(os.getpid(), signal.SIGTERM)
    return take(self, state, start, stop)

  whole = trained(route, name='whole')
  with monkeypatch.context() as patch:
    patch.setattr(Programs, 'train', take_and_stop)
    with pytest.raises(training.Interrupted) as end:
      trained(route, name='cut')
  cut = whole.parent / whole.name.replace('whole', 'cut')
  assert end.value.status.status == workdir.INCOMPLETE
  assert workdir.read_status(cut).status == workdir.INCOMPLETE
  trained(route, name='cut')
  assert results(cut) == results(whole)


@pytest.mark.parametrize(
  ('optimizer', 'message'),
  [
    (
      {'precondition': {'name': 'covariance'}},
      "precondition='covariance' is unknown",
    ),
    (
      {'precondition': {'name': 'input_covariance', 'each': 1}},
      "no option 'each'",
    ),
    (
      {'name': 'adam', 'precondition': {'name': 'input_covariance'}},
      "'adam' has no option 'precondition'",
    ),
  ],
)
def test_what_a_config_gets_wrong(optimizer, message):
  config = {'name': 'sgd', 'learning_rate': 0.1} | optimizer
  with pytest.raises(errors.UserError, match=message):
    optim.create(config, 10)
