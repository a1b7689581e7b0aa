"""Decoding of images, against the decoding of TFDS itself."""

import io

import numpy as np
import pytest
from PIL import Image

from bn_research import data, errors
from bn_research.data import builders, decoding


def _set(write, shape, splits):
  """Writes a dataset `pictures`; an example is an encoded image or an array."""
  import tensorflow_datasets as tfds

  class Pictures(tfds.core.GeneratorBasedBuilder):
    name = 'pictures'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            'image': tfds.features.Image(shape=shape),
            'label': tfds.features.ClassLabel(num_classes=3),
            'note': tfds.features.Text(),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      raise NotImplementedError

    def _generate_examples(self):
      raise NotImplementedError

  examples = {
    split: [
      {'image': io.BytesIO(image), 'label': label, 'note': 'x'}
      for image, label in pairs
    ]
    for split, pairs in splits.items()
  }
  return write(Pictures, examples)


def _encoded(image, kind='png', **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def _noise(mode, size=(5, 7)):
  """An image of Pillow, of the given width and height."""
  channels = {'L': 1, 'RGB': 3, 'RGBA': 4}[mode]
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (size[1], size[0], channels), np.uint8)
  return Image.fromarray(pixels[..., 0] if mode == 'L' else pixels)


_BOTH = ('train', 'test')


@pytest.mark.parametrize(
  ('kind', 'mode'),
  [
    ('png', 'L'),
    ('png', 'RGB'),
    ('png', 'RGBA'),
    ('jpeg', 'L'),
    ('jpeg', 'RGB'),
  ],
)
def test_it_is_what_tfds_decodes(kind, mode, write, monkeypatch):
  monkeypatch.setattr(decoding, '_CHUNK', 2)
  image = _noise(mode)
  shape = (7, 5, len(mode))
  pairs = [
    (_encoded(image.rotate(180 * (i % 2)), kind), i % 3) for i in range(5)
  ]
  data_dir = _set(write, shape, {'train': pairs, 'test': pairs[:1]})
  found = data.load({'name': 'pictures'}, data_dir)
  source = builders.find('pictures', data_dir).as_data_source(split='train')
  expected = [source[i] for i in range(len(source))]
  np.testing.assert_array_equal(
    found.train.images, [example['image'] for example in expected]
  )
  assert found.train.labels.tolist() == [e['label'] for e in expected]
  assert found.train.images.shape == (len(pairs), *shape)
  if kind == 'png':
    assert (found.test.images[0] == np.asarray(image).reshape(shape)).all()


@pytest.mark.parametrize(
  ('shape', 'image'),
  [
    ((7, 5, 3), _noise('RGB').quantize(200)),
    ((7, 5, 3), _noise('L')),
    ((7, 5, 1), _noise('L').convert('1')),
  ],
)
def test_other_modes_are_converted(shape, image, write):
  data_dir = _set(write, shape, {s: [(_encoded(image), 1)] for s in _BOTH})
  found = data.load({'name': 'pictures'}, data_dir).test.images[0]
  mode = 'RGB' if shape[2] == 3 else 'L'
  expected = np.asarray(image.convert(mode)).reshape(shape)
  np.testing.assert_array_equal(found, expected)


def _fails(message, data_dir):
  with pytest.raises(errors.UserError, match=message) as caught:
    data.load({'name': 'pictures'}, data_dir)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('size', [(5, 1), (1, 7), (7, 5)])
def test_an_image_of_another_size_is_told(size, write):
  pair = (_encoded(_noise('L', size)), 0)
  data_dir = _set(write, (7, 5, 1), {split: [pair] for split in _BOTH})
  of = f'{size[1]} x {size[0]}'
  _fails(
    f'cannot be read: an image is of {of} pixels instead of 7 x 5', data_dir
  )


def test_a_label_that_is_missing_is_told(write):
  # TFDS has -1 for an unknown class, as in the test split of a competition.
  pairs = [(_encoded(_noise('L')), label) for label in (0, -1)]
  data_dir = _set(write, (7, 5, 1), {'train': pairs[:1], 'test': pairs})
  _fails(r"data\.test='test': .* has a label outside of 0 to 2", data_dir)


def test_what_is_no_image_is_told(write, monkeypatch):
  pair = (_encoded(_noise('L')), 0)
  data_dir = _set(write, (7, 5, 1), {split: [pair] for split in _BOTH})
  for harm, message in (
    (lambda record: record[:30], 'record 0 of train is no example'),
    (lambda record: b'', 'record 0 of train is no example'),
    (lambda record: record.replace(b'PNG', b'GNP'), 'cannot identify image'),
  ):
    _harm(monkeypatch, harm)
    _fails(f'cannot be read: .*{message}.*; if damaged, delete it', data_dir)
    monkeypatch.undo()


def _harm(monkeypatch, harm):
  """Changes each record of all files."""
  from array_record.python import array_record_data_source as records

  read = records.ArrayRecordDataSource.__getitems__
  monkeypatch.setattr(
    records.ArrayRecordDataSource,
    '__getitems__',
    lambda self, keys: [harm(record) for record in read(self, keys)],
  )
