import logging
import os
import pathlib
import shutil
import time

import ml_collections
import numpy as np
import pytest

from bn_research import data, errors


def _fails(match, config, data_dir):
  """Asserts a UserError of one line, at once."""
  begin = time.perf_counter()
  with pytest.raises(errors.UserError, match=match) as caught:
    data.load(config, data_dir)
  assert '\n' not in str(caught.value)
  assert time.perf_counter() - begin < 1


def _folder(data_dir):
  return pathlib.Path(data_dir, 'mnist/3.0.1')


def _shard(data_dir):
  return _folder(data_dir) / 'mnist-train.array_record-00000-of-00001'


def test_images_and_labels_stay_together(small_mnist):
  data_dir, images, labels = small_mnist
  config = ml_collections.ConfigDict({'name': 'mnist', 'binarize': 0.5})
  train = data.load(config, data_dir).train
  assert train.images.dtype == np.uint8
  assert train.labels.dtype == np.int32
  expected = {i.tobytes(): l for i, l in zip(images, labels, strict=True)}
  assert len(expected) == len(train.labels) == 30
  for image, label in zip(train.images, train.labels, strict=True):
    assert expected[image.tobytes()] == label


def test_colour_and_features_that_are_not_asked_for(write):
  from PIL import Image
  from tensorflow_datasets.image_classification import cifar

  images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
  examples = [
    {'id': f'train_{i}', 'image': Image.fromarray(image), 'label': i}
    for i, image in enumerate(images)
  ]
  data_dir = write(cifar.Cifar10, {'train': examples, 'test': examples[:2]})
  dataset = data.load({'name': 'cifar10'}, data_dir)
  assert dataset.num_classes == 10
  assert dataset.test.images.shape == (2, 32, 32, 3)
  np.testing.assert_array_equal(
    dataset.train.images, images[dataset.train.labels]
  )


def test_real_mnist(real_mnist):
  config = {'name': 'mnist', 'train': 'train[:1000]'}
  dataset = data.load(config, real_mnist)
  assert dataset.train.images.shape == (1000, 28, 28, 1)
  assert dataset.train.labels[:8].tolist() == [4, 1, 0, 7, 8, 1, 2, 7]
  assert np.bincount(dataset.test.labels).tolist() == [
    *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
  ]


def test_real_cifar10(real_cifar10):
  config = {'name': 'cifar10', 'train': 'train[:100]', 'test': 'train[49000:]'}
  dataset = data.load(config, real_cifar10, ('test', 'test[:2000]'))
  shapes = [
    dataset.split(name).images.shape
    for name in ('train', 'test', 'test[:2000]')
  ]
  assert shapes == [(n, 32, 32, 3) for n in (100, 1000, 2000)]
  # The published means of the channels are 0.4914, 0.4822 and 0.4465.
  means = dataset.split('test[:2000]').images.mean((0, 1, 2)) / 255
  np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=0.01)
  assert len(np.unique(dataset.test.labels)) == 10


def test_a_validation_split_by_name_and_by_slice(tmp_path):
  for config, splits in (
    ({'test': 'validation'}, ('test', 'validation')),
    (
      {'train': 'train[:1000]', 'test': 'train[1000:]'},
      ('test', 'train[1000:]'),
    ),
  ):
    found = data.load({'name': 'digits', **config}, str(tmp_path), splits)
    first, second = (found.split(name) for name in splits)
    np.testing.assert_array_equal(first.images, second.images)
    expected = 179 if 'train' not in config else 260
    assert len(second.labels) == expected


@pytest.mark.parametrize(
  ('name', 'match'),
  [
    ('mnits', r"'mnits': no such dataset \(did you mean 'mnist'\?\)"),
    ('digit', "did you mean 'digits'"),
    ('zzzzzz', 'no such dataset; tfds.list_builders'),
    ('huggingface:mnist', "No module named 'huggingface'"),
    ('', 'not a name'),
    (None, 'not a name'),
    ('mnist:9.9.9', r'version 9\.9\.9, only: 3\.0\.1'),
    ('mnist/letters', "data.name='mnist/letters': BuilderConfig letters"),
    ('mnist', r'mnist 3\.0\.1 is not .*-m bn_research.data mnist --data_dir=/'),
    ('kmnist', 'is not prepared .* tfds build kmnist --file_format=array_rec'),
    ('cifar10', r'3\.0\.2 is not .*-m bn_research.data cifar10 --data_dir=/'),
  ],
)
def test_nothing_is_there(name, match, tmp_path):
  _fails(match, {'name': name}, str(tmp_path))


def test_only_another_version_is_there(small_mnist):
  data_dir, *_ = small_mnist
  _folder(data_dir).rename(_folder(data_dir).with_name('2.0.0'))
  _fails(r'only 2\.0\.0', {'name': 'mnist'}, data_dir)
  other = data.load({'name': 'mnist:2.0.0'}, data_dir)
  assert len(other.train.labels) == 30


def test_half_written(small_mnist):
  data_dir, *_ = small_mnist
  (_folder(data_dir) / 'dataset_info.json').unlink()
  _fails('half written; delete it', {'name': 'mnist'}, data_dir)


def test_tfds_warns_of_nothing_that_is_told_or_normal(small_mnist, caplog):
  data_dir, *_ = small_mnist
  data.load({'name': 'mnist'}, data_dir)  # without OpenCV
  (_folder(data_dir) / 'dataset_info.json').unlink()
  _fails('half written', {'name': 'mnist'}, data_dir)
  assert caplog.records == []
  logging.getLogger('absl').warning('another')
  assert [record.message for record in caplog.records] == ['another']


def test_damaged_description(small_mnist):
  data_dir, *_ = small_mnist
  (_folder(data_dir) / 'dataset_info.json').write_text('{')
  _fails(r'dataset_info\.json .* damaged; delete', {'name': 'mnist'}, data_dir)


def test_another_format(small_mnist):
  data_dir, *_ = small_mnist
  info = _folder(data_dir) / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record"', 'tfrecord"'))
  _fails('written as tfrecord', {'name': 'mnist'}, data_dir)


def _remove(shard):
  shard.unlink()


def _cut(shard):
  os.truncate(shard, shard.stat().st_size // 2)


def _overwrite(shard):
  content = bytearray(shard.read_bytes())
  content[100:200] = bytes(100)
  shard.write_bytes(content)


@pytest.mark.parametrize('harm', [_remove, _cut, _overwrite])
def test_damaged_shard(harm, small_mnist):
  data_dir, *_ = small_mnist
  data.load({'name': 'mnist'}, data_dir)  # a kept copy must not hide it
  harm(_shard(data_dir))
  _fails('cannot be read: .*; if damaged, delete', {'name': 'mnist'}, data_dir)


@pytest.mark.parametrize(
  ('split', 'match'),
  [
    ('validation', "data.test='validation'.*'train', 'test'"),
    ('train[:0]', 'is empty'),
    ('train[5:2]', 'is empty'),
    ('train[40:]', 'incompatible with 30 examples'),
    ('train[', 'Unrecognized split format'),
    ('', 'Unrecognized split format'),
  ],
)
def test_split(split, match, small_mnist):
  data_dir, *_ = small_mnist
  _fails(match, {'name': 'mnist', 'test': split}, data_dir)


def test_a_split_of_the_evaluation_is_told_by_its_key(small_mnist):
  data_dir, *_ = small_mnist
  for split, match in (
    ('tset', r"^config\.eval\.splits names 'tset': .*'train', 'test'"),
    ('train[:0]', r"^config\.eval\.splits names 'train\[:0\]': .* is empty"),
  ):
    with pytest.raises(errors.UserError, match=match):
      data.load({'name': 'mnist'}, data_dir, ('test', split))


def _odd(features):
  import tensorflow_datasets as tfds

  class Odd(tfds.core.GeneratorBasedBuilder):
    """Not an image-classification set."""

    name = 'odd'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      raise NotImplementedError

    def _generate_examples(self):
      raise NotImplementedError

  return Odd


def test_sets_that_are_not_image_classification(write):
  import tensorflow_datasets as tfds
  from PIL import Image

  image = tfds.features.Tensor(shape=(2, 2, 1), dtype=np.uint8)
  real = tfds.features.Tensor(shape=(2, 2, 1), dtype=np.float32)
  flat = tfds.features.Tensor(shape=(4,), dtype=np.uint8)
  label = tfds.features.ClassLabel(num_classes=2)
  grey = np.zeros((2, 2, 1), np.uint8)
  cases = [
    ({'image': image}, {'image': grey}, 'no label among image'),
    ({'label': label}, {'label': 1}, 'no image among label'),
    (
      {'image': image, 'label': np.int64},
      {'image': grey, 'label': 1},
      'no label among',
    ),
    (
      {'image': real, 'label': label},
      {'image': np.float32(grey), 'label': 1},
      'type .*float32',
    ),
    (
      {'image': flat, 'label': label},
      {'image': grey.ravel(), 'label': 1},
      r'shape \(4,\)',
    ),
    (
      {'image': tfds.features.Image(), 'label': label},
      {'image': Image.fromarray(np.zeros((2, 2, 3), np.uint8)), 'label': 1},
      r'shape \(None, None, 3\)',
    ),
  ]
  for features, example, match in cases:
    data_dir = write(_odd(features), {'train': [example]})
    _fails(match, {'name': 'odd'}, data_dir)
    shutil.rmtree(data_dir)


def test_splits_of_the_user_that_do_not_fit_are_told(user_module):
  user_module(
    'my_splits',
    'import dataclasses\nimport numpy as np\nfrom bn_research import data\n'
    'def split(size, dtype=np.uint8):\n'
    '  images = np.zeros((4, size, size, 1), dtype)\n'
    '  return data.Split(images, np.zeros(4, np.int32))\n'
    'def mine(kind):\n'
    '  changes = {\n'
    '    "test": {"test": split(8)},\n'
    '    "size": {"others": {"more": split(8)}},\n'
    '    "type": {"others": {"more": split(9, float)}},\n'
    '    "kind": {"others": {"more": 3}},\n'
    '    "pair": {"test": tuple(split(9))},\n'
    '    "no others": {"others": None},\n'
    '    "list": {"others": [split(9)]},\n'
    '    "number": {"others": {1: split(9)}},\n'
    '    "train": {"others": {"train": split(9)}},\n'
    '    "text": {"num_classes": "2"},\n'
    '    "float": {"num_classes": 2.0},\n'
    '    "true": {"num_classes": True},\n'
    '    "numpy": {"num_classes": np.int64(2)},\n'
    '    "none": {"others": {"more": split(9)}},\n'
    '  }[kind]\n'
    '  dataset = data.Dataset("mine", split(9), split(9), 2)\n'
    '  return dataclasses.replace(dataset, **changes)\n',
  )
  config = {'name': 'my_splits:mine'}
  assert data.load({**config, 'kind': 'none'}).split('more').images.ndim == 4
  for kind, message in (
    ('test', r'the split test has images of shape \(8, 8, 1\), and train has'),
    ('size', r'the split more has images of shape \(8, 8, 1\), and train has'),
    ('type', 'the split more has .* type float64'),
    ('pair', 'the split test is a tuple; give a bn_research.data.Split'),
    ('no others', 'others is a NoneType; give a dict of bn_research.data.Spl'),
    ('list', 'others is a list; give a dict'),
    ('number', 'others has the name 1; give a text other than train and test'),
    ('train', "others has the name 'train'; give a text other than"),
    ('text', "my_splits:mine: num_classes='2' is a str; give an int"),
    ('float', r'num_classes=2\.0 is a float; give an int'),
    ('true', r'num_classes=True is a bool; give an int'),
    ('numpy', r'num_classes=np.int64\(2\) is a int64; give an int'),
    ('kind', 'the split more is a int; give a bn_research.data.Split'),
  ):
    with pytest.raises(errors.UserError, match=message):
      data.load({**config, 'kind': kind})
