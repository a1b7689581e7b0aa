"""Runs small enough to be trained many times."""

import copy

import jax
import numpy as np
import pytest

from bn_research import data, workdir
from bn_research.training import stepping

CONFIG = {
  'seed': 0,
  'num_steps': 60,
  'batch_size': 16,
  'num_devices': 1,
  'microbatches': 1,
  'label_smoothing': 0.0,
  'data': {'name': 'blobs', 'train': 'train', 'test': 'test'},
  'model': {
    'name': 'mlp',
    'widths': (12, 8),
    'nonlinearity': 'sigmoid',
    'init_scale': 0.3,
    'norm': {'name': 'batch_norm', 'momentum': None},
  },
  'optimizer': {'name': 'sgd', 'learning_rate': 0.5, 'momentum': 0.9},
  'eval': {
    'num_points': 4,
    'spacing': 'linear',
    'splits': ('test',),
    'population': 'running',
    'weights': 'last',
    'step_norms': 'last',
  },
  'probes': {
    'activations': {
      'percentiles': (15.0, 50.0, 85.0),
      'unit': 1,
      'num_examples': 40,
      'num_points': 5,
      'spacing': 'log',
    },
  },
  'checkpoint_seconds': 60.0,
}


@pytest.fixture(scope='session')
def dataset():
  """Four classes of noisy 4x4 images."""
  rng = np.random.default_rng(0)
  centres = rng.uniform(40, 215, (4, 4, 4, 1))

  def split(count):
    labels = rng.integers(0, 4, count, np.int32)
    noise = rng.normal(0, 30, (count, 4, 4, 1))
    images = np.clip(centres[labels] + noise, 0, 255).astype(np.uint8)
    return data.Split(images, labels)

  return data.Dataset('blobs', split(100), split(37), 4)


@pytest.fixture
def loaded(monkeypatch, dataset):
  """Has every run train on `dataset`."""
  monkeypatch.setattr(data, 'load', lambda config, data_dir, splits: dataset)


@pytest.fixture
def created_steps(monkeypatch):
  """A list that gets the compiled steps of each run."""
  create, created = stepping.create, []

  def note(*args):
    created.append(create(*args))
    return created[-1]

  monkeypatch.setattr(stepping, 'create', note)
  return created


@pytest.fixture
def x64():
  """Numbers are float64 in all threads, in which the runs of a pack are."""
  jax.config.update('jax_enable_x64', True)
  yield
  jax.config.update('jax_enable_x64', False)


@pytest.fixture
def config():
  """A config that a test may change."""
  return copy.deepcopy(CONFIG)


@pytest.fixture
def results():
  """Reads all that must be the same, bit for bit, in two runs."""

  def read(directory):
    rows = workdir.read_metrics(directory)
    for row in rows:
      assert row.pop('seconds') >= 0
    arrays = {
      (path.stem, name): array.tobytes()
      for path in (directory / workdir.PROBES).glob('*.npz')
      for name, array in workdir.read_probe(directory, path.stem).items()
    }
    return rows, arrays, _parameters(directory)

  return read


def _of_numbers(leaf):
  """Returns the numbers of an array, which may be a key."""
  is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _parameters(directory):
  from orbax import checkpoint as ocp

  root = directory.absolute() / workdir.CHECKPOINTS
  with ocp.CheckpointManager(root) as manager:
    step = manager.latest_step()
    state = manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
    )['state']
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {
    jax.tree_util.keystr(path): _of_numbers(leaf).tobytes()
    for path, leaf in leaves
  }
