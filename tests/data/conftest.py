"""Small datasets, prepared for real in folders of their own."""

import pathlib

import numpy as np
import pytest

from bn_research.data import builders

_REAL = pathlib.Path(__file__).parents[2] / '../shared/data'


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def real_mnist():
  """The folder that holds MNIST as TFDS prepared it."""
  folder = _REAL / 'tfds'
  if not (folder / 'mnist/3.0.1/dataset_info.json').exists():
    pytest.skip('MNIST is not prepared in ../shared/data/tfds')
  return str(folder.resolve())


@pytest.fixture
def real_cifar10():
  """The folder that holds CIFAR-10 as TFDS prepared it."""
  folder = _REAL / 'tfds'
  if not (folder / 'cifar10/3.0.2/dataset_info.json').exists():
    pytest.skip('CIFAR-10 is not prepared in ../shared/data/tfds')
  return str(folder.resolve())


@pytest.fixture
def raw_mnist():
  """The folder of the four original files of MNIST."""
  folder = _REAL / 'raw/mnist'
  if not folder.exists():
    pytest.skip('the files of MNIST are not in ../shared/data/raw/mnist')
  return folder.resolve()


@pytest.fixture
def write(tmp_path):
  """Returns `write(official_builder, splits, num_shards)` -> the data_dir.

  It writes what is given under the name, version and features of a builder of
  TFDS, in the way that TFDS does, from PIL images.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import registered

  def write(official, splits, num_shards=None):
    class Writer(official):
      name = official.name

      def _split_generators(self, dl_manager):
        return {k: self._generate_examples(v) for k, v in splits.items()}

      def _generate_examples(self, examples):
        yield from enumerate(examples)

    Writer(
      data_dir=tmp_path / 'data', file_format='array_record'
    ).download_and_prepare(
      download_dir=tmp_path / 'downloads',
      download_config=tfds.download.DownloadConfig(
        try_download_gcs=False, num_shards=num_shards
      ),
    )
    return str(tmp_path / 'data')

  # Else builders might first be imported below, and never be listed.
  tfds.list_builders(with_community_datasets=False)
  builders.find('digits')
  with registered.skip_registration():
    yield write


@pytest.fixture
def small_mnist(write):
  """Returns (data_dir, images, labels): noise in the shape of MNIST.

  The images and labels are those of train, in the order written.
  """
  from PIL import Image
  from tensorflow_datasets.image_classification import mnist

  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 28, 28, 1), np.uint8)
  labels = rng.integers(0, 10, 40)
  examples = [
    {'image': Image.fromarray(image[..., 0]), 'label': int(label)}
    for image, label in zip(images, labels, strict=True)
  ]
  data_dir = write(mnist.MNIST, {'train': examples[:30], 'test': examples[30:]})
  return data_dir, images[:30], labels[:30]


@pytest.fixture
def small_cifar10(write):
  """Returns (data_dir, images, labels): noise in the shape of CIFAR-10.

  The images and labels are those of train, 40 in three files, as stored. Test
  has 10 examples.
  """
  import tensorflow_datasets as tfds
  from PIL import Image
  from tensorflow_datasets.image_classification import cifar

  rng = np.random.default_rng(0)
  examples = [
    {
      'id': f'{k}',
      'image': Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)),
      'label': k % 10,
    }
    for k in range(50)
  ]
  splits = {'train': examples[:40], 'test': examples[40:]}
  data_dir = write(cifar.Cifar10, splits, num_shards=3)
  builder = tfds.builder('cifar10', data_dir=data_dir)
  stored = builder.as_data_source(split='train').__getitems__(range(40))
  images = np.stack([example['image'] for example in stored])
  return data_dir, images, np.array([e['label'] for e in stored], np.int32)
