import json
import pathlib

import numpy as np
import pytest
from sklearn import datasets

from bn_research import data, errors
from bn_research.data import builders, digits, prepare


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('data'))
  data.load({'name': 'digits'}, folder)
  return folder


def _rows(split):
  """Examples as sortable bytes, images and labels."""
  return sorted(
    image.tobytes() + bytes([label])
    for image, label in zip(*split, strict=True)
  )


def test_defaults(data_dir):
  dataset = data.load({'name': 'digits'}, data_dir)
  assert (dataset.name, dataset.num_classes) == ('digits', 10)
  for split, n in (dataset.train, 1260), (dataset.test, 358):
    assert (split.images.shape, split.images.dtype) == ((n, 8, 8, 1), np.uint8)
    assert (split.labels.shape, split.labels.dtype) == ((n,), np.int32)
    assert (split.images.min(), split.images.max()) == (0, 255)


def test_the_splits_part_the_whole_bundle(data_dir):
  bundle = datasets.load_digits()
  grey = np.floor(bundle.images * 255 / 16 + 0.5).astype(np.uint8)
  # 8 of 16 is 127.5, which goes to the even neighbour, 128.
  expected = _rows((grey, bundle.target))
  found = []
  for name, n in [('train', 1260), ('validation', 179), ('test', 358)]:
    split = data.load({'name': 'digits', 'train': name}, data_dir).train
    shares = np.bincount(split.labels) / np.bincount(bundle.target)
    np.testing.assert_allclose(shares, n / 1797, atol=0.015)
    found += _rows(split)
  assert len(found) == 1797
  assert sorted(found) == expected


def test_prepared_again_it_is_the_same(data_dir, tmp_path):
  first = data.load({'name': 'digits'}, data_dir)
  second = data.load({'name': 'digits'}, str(tmp_path))
  np.testing.assert_array_equal(first.train.images, second.train.images)
  np.testing.assert_array_equal(first.train.labels, second.train.labels)


def test_slices_and_sums(data_dir):
  config = {'name': 'digits', 'train': 'train[:100]', 'test': 'all'}
  dataset = data.load(config, data_dir)
  whole = data.load({'name': 'digits'}, data_dir)
  np.testing.assert_array_equal(dataset.train.images, whole.train.images[:100])
  assert len(dataset.test.labels) == 1797


def test_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  data.load({'name': 'digits'}, '~/data')
  assert (tmp_path / 'data/digits/1.0.0/dataset_info.json').exists()


def test_no_directory_is_the_usual_one_and_not_this_one():
  given, usual = (builders.find('digits', where) for where in ('', None))
  assert given.data_path == usual.data_path


def test_preparing_says_nothing(tmp_path, capfd):
  data.load({'name': 'digits'}, str(tmp_path))
  assert capfd.readouterr() == ('', '')


def test_another_process_is_first(tmp_path, monkeypatch):
  write = digits.Digits._generate_examples
  overtaken = []

  def overtake(self, images, labels):
    if not overtaken:
      overtaken.append(True)
      prepare.prepare('digits', str(tmp_path))
    return write(self, images, labels)

  monkeypatch.setattr(digits.Digits, '_generate_examples', overtake)
  dataset = data.load({'name': 'digits'}, str(tmp_path))
  assert overtaken
  assert len(dataset.train.labels) == 1260
  assert [p.name for p in (tmp_path / 'digits').iterdir()] == ['1.0.0']


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(
    errors.UserError, match=r'cannot write .*another --data_dir'
  ):
    data.load({'name': 'digits'}, str(tmp_path / 'file'))


def test_a_full_disk(tmp_path, monkeypatch):
  def fill(self, images, labels):
    raise RuntimeError('write() failed: No space left on device')
    yield

  monkeypatch.setattr(digits.Digits, '_generate_examples', fill)
  with pytest.raises(errors.UserError, match=r'cannot write .*No space left'):
    data.load({'name': 'digits'}, str(tmp_path))
  assert list((tmp_path / 'digits').iterdir()) == []


def test_written_without_tensorflow(data_dir):
  info = pathlib.Path(data_dir, 'digits/1.0.0/dataset_info.json')
  assert json.loads(info.read_text())['fileFormat'] == 'array_record'
