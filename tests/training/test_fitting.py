"""Layers that are fitted to training images before the first step of a run."""

import copy
import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import bn_research
from bn_research import data, fitting, training, workdir
from bn_research.training import configuration, feeding, mesh, programs, state
from tests.oracles import patches as oracle
from tests.quick import some
from tests.training.conftest import CONFIG

EPSILON = 1e-3


@pytest.fixture
def patches(loaded):
  """A network with a whitened stem, fitted to 30 of 100 images of 4 x 4."""
  del loaded
  config = copy.deepcopy(CONFIG)
  config['model'] = {
    'name': 'patch_cnn',
    'widths': (4,),
    'norm': {'name': 'batch_norm'},
    'stem': {
      'name': 'whitened_patches',
      'epsilon': EPSILON,
      'num_examples': 30,
    },
  }
  return {**config, 'num_steps': 12, 'probes': {}}


def fitted(config, dataset, num_devices=1):
  """The state before the first step, without the programs of the steps."""
  images = dataset.train.images
  config = configuration.resolve({**config, 'num_devices': num_devices})
  devices = mesh.create(num_devices, config['batch_size'])
  with jax.set_mesh(devices):
    examples = feeding.Memory(config, dataset, devices)
    create = state.creator(config, images.shape[1:], 4, optax.sgd(0.1))
    graphdef, _ = jax.eval_shape(create, examples.key)
    before = jax.jit(lambda key: create(key)[1])(examples.key)
    fit = functools.partial(
      state.fitted,
      graphdef=graphdef,
      to_input=data.input_function(config['data'], images),
    )
    model = nnx.merge(graphdef, before.params, before.rest)
    sample = examples.sample(fitting.num_examples(model))
    after = jax.jit(fit, out_shardings=mesh.replicated(devices))(
      before, mesh.replicate(sample, devices)
    )
  return jax.device_get(after)


def expected(images, count):
  """The kernel by eigenvectors in float64, of images at equal distances."""
  chosen = images[np.arange(count) * len(images) // count] / 255
  rows = oracle.patches(chosen, (2, 2), (1, 1)).reshape(-1, 4)
  root, mean = oracle.whitening(rows, EPSILON)
  both = np.concatenate([root, -root])
  return both.T.reshape(2, 2, 1, 8), -both @ mean


@pytest.mark.parametrize('num_devices', some([2], [1, 8]))
def test_the_kernel_is_of_the_training_images(patches, dataset, num_devices):
  stem = fitted(patches, dataset, num_devices).rest['stem']
  kernel, shift = expected(dataset.train.images, 30)
  np.testing.assert_allclose(stem['kernel'], kernel, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(stem['shift'], shift, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_fewer_images_than_asked_for_are_all_images(patches, dataset):
  patches['model']['stem']['num_examples'] = 5000
  stem = fitted(patches, dataset).rest['stem']
  kernel, _ = expected(dataset.train.images, 100)
  np.testing.assert_allclose(stem['kernel'], kernel, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_fit_sees_normalized_inputs(patches, dataset):
  patches['data']['normalize'] = {'name': 'centre'}
  stem = fitted(patches, dataset).rest['stem']
  # All images together, not the thirty, have the mean 0 after `centre`.
  assert np.abs(stem['shift']).max() < 1.5
  assert (
    np.abs(
      fitted({**patches, 'data': CONFIG['data']}, dataset).rest['stem']['shift']
    ).max()
    > 1.5
  )


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bits(
  patches, dataset, tmp_path, monkeypatch, results
):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  training.train(patches, whole)
  train, init = programs.Programs.train, programs.Programs.init
  made = []

  def stop(self, train_state, start, end):
    if end > 6:
      raise KeyboardInterrupt
    return train(self, train_state, start, end)

  def note(self):
    made.append(self)
    return init(self)

  monkeypatch.setattr(programs.Programs, 'init', note)
  with monkeypatch.context() as patch:
    patch.setattr(programs.Programs, 'train', stop)
    with pytest.raises(KeyboardInterrupt):
      training.train({**patches, 'checkpoint_seconds': 0.0}, cut)
  assert 0 < workdir.read_metrics(cut)[-1]['step'] < 12
  training.train({**patches, 'checkpoint_seconds': 0.0}, cut)
  assert len(made) == 1  # the kernel is from the checkpoint
  assert results(cut) == results(whole)
  # Training moves the bias, and neither the kernel nor the shift.
  before = fitted(patches, dataset).rest['stem']
  model = bn_research.load(cut).model()
  for name in ('kernel', 'shift'):
    np.testing.assert_allclose(
      getattr(model.stem, name)[...], before[name], rtol=1e-4, atol=1e-4
    )
  assert np.abs(model.norm.bias[...]).min() > 0
