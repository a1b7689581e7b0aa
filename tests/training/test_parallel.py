"""Every form of parallel program, on any number of devices, is one run."""

import copy
import itertools

import jax
import numpy as np
import pytest

from bn_research import errors, training, workdir
from bn_research.training import checkpoints
from tests.quick import some

pytestmark = pytest.mark.usefixtures('loaded')

NETWORKS = {
  'mlp': {'widths': (6, 4)},
  'resnet': {'depth': 8, 'width': 2},
}
NORMS = {
  'batch_norm': {'momentum': 0.9},
  'ghost': {'name': 'batch_norm', 'group_size': 4},
  'across': {'name': 'batch_norm', 'group_size': 12},
  'layer_norm': {},
  'iter_norm': {},
  'batch_renorm': {},
  'evonorm_b0': {},
  'power_norm': {},
  'virtual_batch_norm': {'reference_size': 3},
}
POOLED = [name for name in NORMS if name != 'virtual_batch_norm']
FORMS = [
  {'form': form, 'num_devices': n}
  for form, n in itertools.product(('jit', 'shard_map', 'pmap'), (2, 8))
]
FORMS += [{'model_devices': 2, 'num_devices': n} for n in (2, 8)]


@pytest.fixture
def trained(config, x64, results, tmp_path):
  """Trains a network in float64, and returns the parameters."""
  config |= {'num_steps': 20, 'probes': {}, 'batch_size': 24}
  config['optimizer'] |= {'learning_rate': 0.1}
  config['eval'] |= {'num_points': 1}

  def train(network, norm, changes, **parallel):
    one = copy.deepcopy(config) | changes
    one['num_devices'] = parallel.pop('num_devices', 1)
    one['parallel'] = {'form': 'jit', 'model_devices': 1} | parallel
    one['model'] = {
      'name': 'tests.training.double_nets:Double',
      'kind': network,
      'options': NETWORKS[network],
      'norm': {'name': norm} | NORMS.get(norm, {}),
    }
    directory = tmp_path / str(len(list(tmp_path.iterdir())))
    assert training.train(one, directory).status == workdir.DONE
    return {
      key: np.frombuffer(array, np.float64)
      for key, array in results(directory)[2].items()
      if key.startswith(("['params']", "['rest']")) and len(array) % 8 == 0
    }

  return train


def assert_same(mine, expected):
  assert mine.keys() == expected.keys()
  assert sum(map(len, expected.values())) > 50
  for key, array in expected.items():
    assert np.isfinite(array).all(), key
    np.testing.assert_allclose(
      mine[key], array, rtol=1e-8, atol=1e-9, err_msg=key
    )


@pytest.mark.parametrize(
  ('network', 'norm', 'parallel'),
  some(
    [('mlp', 'batch_norm', FORMS[k]) for k in (0, 3, 5, 7)],
    itertools.product(NETWORKS, POOLED, FORMS),
  ),
)
def test_one_device_and_many_are_one_run(trained, network, norm, parallel):
  alone = trained(network, norm, {})
  assert_same(trained(network, norm, {}, **parallel), alone)


@pytest.mark.parametrize(
  ('network', 'form', 'num_devices'),
  some(
    [('mlp', 'jit', 2), ('mlp', 'shard_map', 4), ('mlp', 'pmap', 2)],
    itertools.product(NETWORKS, ('jit', 'shard_map', 'pmap'), (2, 8)),
  ),
)
def test_statistics_of_a_device_are_those_of_a_ghost_batch(
  trained, monkeypatch, network, form, num_devices
):
  size = 24 // num_devices
  monkeypatch.setitem(NORMS, 'batch_norm', {'group_size': size})
  ghosts = trained(network, 'batch_norm', {})
  monkeypatch.setitem(NORMS, 'batch_norm', {'group_size': 'device'})
  mine = trained(network, 'batch_norm', {}, form=form, num_devices=num_devices)
  assert_same(mine, ghosts)
  whole = trained(network, 'batch_norm', {})
  with pytest.raises(AssertionError):
    assert_same(whole, ghosts)


@pytest.mark.parametrize('form', some(['shard_map'], ['pmap']))
def test_micro_batches_and_notes_of_devices(trained, form):
  changes = {
    'microbatches': 3,
    'optimizer': {
      'name': 'sgd',
      'learning_rate': 0.05,
      'precondition': {'name': 'input_covariance'},
    },
  }
  alone = trained('mlp', 'batch_norm', changes)
  assert_same(
    trained('mlp', 'batch_norm', changes, form=form, num_devices=4), alone
  )


@pytest.mark.parametrize('form', ['shard_map', 'pmap'])
def test_what_has_no_form_over_named_devices_is_told(trained, form):
  with pytest.raises(errors.UserError, match='first rows of the batch'):
    trained('mlp', 'virtual_batch_norm', {}, form=form, num_devices=2)


USER_NET = """
from flax import nnx

class Net(nnx.Module):
  def __init__(self, *, input_shape, num_classes, norm, rngs, changes=True):
    self.norm = norm('input', 16, rngs=rngs)
    self.output = nnx.Linear(16, num_classes, rngs=rngs)
    self.mean = nnx.Variable(nnx.initializers.zeros(rngs.params(), ()))
    self.changes = changes

  def __call__(self, x, *, train, tap=lambda name, value: value):
    h = tap('input', x.reshape(len(x), -1))
    if train and self.changes:
      self.mean[...] = 0.9 * self.mean[...] + 0.1 * h.mean()
    return self.output(self.norm(h, use_running_average=not train))
"""


@pytest.mark.parametrize('form', ['jit', 'shard_map', 'pmap'])
def test_a_variable_of_a_user_that_devices_would_not_agree_on_is_told(
  config, tmp_path, user_module, form
):
  user_module('user_mean_net', USER_NET)
  config |= {'num_steps': 2, 'num_devices': 2, 'probes': {}}
  config['model'] = {
    'name': 'user_mean_net:Net',
    'norm': {'name': 'batch_norm'},
    'changes': False,
  }
  config['parallel'] = {'form': form, 'model_devices': 1}
  training.train(config, tmp_path / 'constant')
  config['model']['changes'] = True
  if form == 'jit':
    training.train(config, tmp_path / 'changed')
    return
  with pytest.raises(errors.UserError, match='changes the variable mean'):
    training.train(config, tmp_path / 'changed')


@pytest.mark.parametrize(
  ('changes', 'parallel', 'reason'),
  [
    ({}, {'form': 'vmap'}, "form='vmap'; choose jit or shard_map or pmap"),
    ({}, {'model_devices': 2}, 'does not divide num_devices=1'),
    (
      {'num_devices': 4},
      {'form': 'pmap', 'model_devices': 2},
      'model_devices=2 is for the form jit',
    ),
    ({'num_devices': 8}, {'model_devices': 0}, 'model_devices=0'),
    ({'num_devices': 5, 'batch_size': 12}, {}, 'batch_size=12'),
    ({}, {'from': 'jit'}, "'from' .did you mean 'form'"),
  ],
)
def test_mistakes_are_told(config, tmp_path, changes, parallel, reason):
  config |= changes | {'parallel': {'form': 'jit', 'model_devices': 1}}
  config['parallel'] |= parallel
  with pytest.raises(errors.UserError, match=reason):
    training.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_weights_are_cut_along_the_model_axis(config, tmp_path, monkeypatch):
  config |= {'num_devices': 4, 'num_steps': 4, 'probes': {}}
  config['parallel'] = {'form': 'jit', 'model_devices': 2}
  seen = []
  save = checkpoints.Checkpoints.save

  def note(self, state):
    seen.append(state.params['dense'][0]['kernel'].sharding.spec)
    save(self, state)

  monkeypatch.setattr(checkpoints.Checkpoints, 'save', note)
  training.train(config, tmp_path / 'run')
  assert seen == [jax.sharding.PartitionSpec(None, 'model')]
  # A run goes on with another number of devices, and without a model axis.
  config |= {'num_devices': 1, 'num_steps': 8}
  config['parallel'] = {'form': 'jit', 'model_devices': 1}
  assert training.train(config, tmp_path / 'run').step == 8
