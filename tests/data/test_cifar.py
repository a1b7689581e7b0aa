"""CIFAR from archives that the tests write, in both published forms.

The original archives are not at hand. A test writes an archive of the same
layout, from noise or from CIFAR-10 as TFDS prepared it, and puts the checksum
of this archive in the place of the published checksum.
"""

import contextlib
import io
import os
import pickle
import random
import struct
import tarfile
from typing import ClassVar

import numpy as np
import pytest

from bn_research import data, errors
from bn_research.data import builders, cifar, prepare, unpickling
from tests.damage import HARMS

WRITERS = {'cifar10': cifar.Cifar10, 'cifar100': cifar.Cifar100}
FORMS = ('binary', 'python')


class Python2(pickle._Pickler):
  """Writes texts, bytes and names of NumPy as Python 2 does."""

  def __init__(self, file):
    super().__init__(file, protocol=2)

  def _save_text(self, value):
    content = value.encode() if isinstance(value, str) else value
    self.write(pickle.BINSTRING + struct.pack('<i', len(content)) + content)

  dispatch: ClassVar = {
    **pickle._Pickler.dispatch,
    str: _save_text,
    bytes: _save_text,
  }

  def save_global(self, value, name=None):
    module = value.__module__.replace('_core', 'core')
    self.write(f'c{module}\n{name or value.__qualname__}\n'.encode())


def pickled(value):
  file = io.BytesIO()
  Python2(file).dump(value)
  return file.getvalue()


class Noise:
  """Random examples of CIFAR-10 or CIFAR-100, in the files of an archive."""

  def __init__(self, name, size=4):
    self.name, rng = name, np.random.default_rng(0)
    info = WRITERS[name]._cifar_info.fget(WRITERS[name])
    self.info, self.counts = info, (10,) if name == 'cifar10' else (20, 100)
    self.classes = [
      [f'class {label} of {count}' for label in range(count)]
      for count in self.counts
    ]
    self.rows = {
      file: (
        np.stack([rng.integers(0, n, size, np.uint8) for n in self.counts], 1),
        rng.integers(0, 256, (size, 3072), np.uint8),
      )
      for file in (*info.train_files, *info.test_files)
    }

  def files(self, form):
    if form == 'binary':
      return self._binary()
    return {
      f'{cifar_folder(self.name)}/{file}': pickled(content)
      for file, content in self.dictionaries().items()
    }

  def _binary(self):
    prefix = self.info.prefix
    files = {
      prefix + file: np.hstack(rows).tobytes()
      for file, rows in self.rows.items()
    }
    for file, names in zip(self.info.label_files, self.classes, strict=True):
      files[prefix + file] = ('\n'.join(names) + '\n\n').encode()
    return files

  def dictionaries(self):
    """The dictionaries in the form of pickles, by file."""
    kinds = [''] if self.name == 'cifar10' else ['coarse_', 'fine_']
    found = {
      file.removesuffix('.bin'): {
        'batch_label': f'of {file}',
        'data': pixels,
        **{
          f'{kind}labels': column.tolist()
          for kind, column in zip(kinds, labels.T, strict=True)
        },
      }
      for file, (labels, pixels) in self.rows.items()
    }
    meta = 'batches.meta' if self.name == 'cifar10' else 'meta'
    found[meta] = {
      f'{kind}label_names': names
      for kind, names in zip(kinds, self.classes, strict=True)
    }
    return found

  def examples(self, split):
    """What the official builder makes of the files, without the shuffle."""
    files = {'train': self.info.train_files, 'test': self.info.test_files}
    labels, pixels = map(
      np.concatenate,
      zip(*(self.rows[file] for file in files[split]), strict=True),
    )
    return [
      {
        'id': f'{split}_{i:05d}',
        'image': image.reshape(3, 32, 32).transpose(1, 2, 0),
        **dict(zip(self.info.label_keys, map(int, label), strict=True)),
      }
      for i, (label, image) in enumerate(zip(labels, pixels, strict=True))
    ]


def cifar_folder(name):
  return 'cifar-10-batches-py' if name == 'cifar10' else 'cifar-100-python'


@pytest.fixture
def archive(tmp_path, monkeypatch):
  """Returns `archive(name, form, files)`: the folder of an archive of files.

  The checksum of the archive is in the place of the published checksum.
  """
  from tensorflow_datasets.core.download import checksums

  def write(name, form, files, harm=lambda path: None):
    folder = tmp_path / 'raw'
    folder.mkdir(exist_ok=True)
    path = folder / f'{name.replace("cifar", "cifar-")}-{form}.tar.gz'
    with tarfile.open(path, 'w:gz', compresslevel=1) as tar:
      for member, content in files.items():
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    harm(path)
    url = WRITERS[name].URL + path.name
    infos = {url: checksums.compute_url_info(path)}
    monkeypatch.setattr(WRITERS[name], 'url_infos', infos)
    return str(folder)

  return write


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', WRITERS)
def test_each_form_is_what_the_official_builder_reads(
  name, form, archive, tmp_path, write
):
  from PIL import Image
  from tensorflow_datasets.image_classification import cifar as official

  noise = Noise(name)
  ours = str(tmp_path / 'ours')
  prepare.prepare(name, ours, archive(name, form, noise.files(form)))
  kind = official.Cifar10 if name == 'cifar10' else official.Cifar100
  # TFDS shuffles by the keys of the examples, which are 0, 1, 2, ... in both.
  theirs = write(
    kind,
    {
      split: [
        {**example, 'image': Image.fromarray(np.ascontiguousarray(image))}
        for example in noise.examples(split)
        for image in [example['image']]
      ]
      for split in ('train', 'test')
    },
  )
  found, expected = (builders.find(name, folder) for folder in (ours, theirs))
  assert found.info.features['label'].names == noise.classes[-1]
  for split in ('train', 'test'):
    mine, official_ones = (
      [*builder.as_data_source(split=split)] for builder in (found, expected)
    )
    assert len(mine) == len(noise.examples(split)) > 0
    by_id = {example['id']: example for example in noise.examples(split)}
    for a, b in zip(mine, official_ones, strict=True):
      known = by_id[a['id'].decode()]
      assert a.keys() == b.keys() == known.keys()
      for key in a.keys() - {'image', 'id'}:
        assert a[key] == b[key] == known[key]
      assert a['id'] == b['id']
      np.testing.assert_array_equal(a['image'], known['image'])
      np.testing.assert_array_equal(b['image'], known['image'])
  loaded = data.load({'name': name}, ours)
  assert loaded.num_classes == noise.counts[-1]
  assert loaded.train.images.shape[1:] == (32, 32, 3)


def test_the_published_checksum_is_asked_for(tmp_path):
  for form in FORMS:
    folder = tmp_path / form
    folder.mkdir()
    (folder / f'cifar-10-{form}.tar.gz').write_bytes(b'another')
    with pytest.raises(errors.UserError, match='wrong checksum; fetch') as told:
      prepare.prepare('cifar10', str(tmp_path / 'data'), str(folder))
    assert '\n' not in str(told.value)
    assert not list((tmp_path / 'data').rglob('cifar10'))


def test_a_folder_without_an_archive(tmp_path):
  expected = 'no cifar-100-binary.tar.gz and no cifar-100-python.tar.gz in '
  with pytest.raises(errors.UserError, match=f'^{expected}'):
    prepare.prepare('cifar100', str(tmp_path / 'data'), str(tmp_path))


def _cut(path):
  os.truncate(path, path.stat().st_size // 2)


def _replaced(path):
  path.write_bytes(b'no archive')


def _without(files, name):
  return {key: value for key, value in files.items() if name not in key}


def _with(files, name, content):
  return {k: content if name in k else v for k, v in files.items()}


class _Evil:
  def __reduce__(self):
    return os.mkdir, ('evil',)


def _batch(**changes):
  found = Noise('cifar10').dictionaries()['data_batch_2']
  return pickled({**found, **changes})


def _unlabelled():
  found = Noise('cifar10').dictionaries()['data_batch_2']
  return pickled({k: v for k, v in found.items() if k != 'labels'})


DAMAGES = {
  'cut': ('binary', lambda files: files, _cut, 'Compressed file ended'),
  'no tar': ('python', lambda files: files, _replaced, 'not a gzip file'),
  **{
    f'{form}: {what}': (form, change, lambda path: None, message)
    for form, what, change, message in (
      (
        'binary',
        'a missing batch',
        lambda f: _without(f, '_3'),
        'no cifar-10-',
      ),
      (
        'python',
        'a missing batch',
        lambda f: _without(f, '_3'),
        'no cifar-10-',
      ),
      ('binary', 'no names', lambda f: _without(f, 'meta'), 'no cifar-10-b'),
      ('python', 'no names', lambda f: _without(f, 'meta'), 'no cifar-10-b'),
      ('binary', 'half', lambda f: _with(f, '_2', b'x' * 99), 'reshape array'),
      (
        *('binary', 'a label of 10'),
        lambda f: _with(f, '_2', b'\x0a' + bytes(3072)),
        'a label is outside of 0 to 9',
      ),
      (
        *('binary', 'nine names'),
        lambda f: _with(f, 'meta', b'one\ntwo\n'),
        'number of names',
      ),
      *(
        ('python', what, lambda f, c=content: _with(f, '_2', c), message)
        for what, content, message in (
          ('no dictionary', pickled([1]), 'has a list, and no dict'),
          ('a call', pickled({'data': _Evil()}), 'it names posix.mkdir'),
          ('empty', b'', 'cannot be read: Ran out of input'),
          ('no labels', _unlabelled(), 'data_batch_2 has no labels'),
          ('too few labels', _batch(labels=[1]), '17 labels, but pixels'),
          ('texts', _batch(labels=['a'] * 4), 'labels of type'),
          ('None', _batch(labels=None), 'number of dimensions'),
          ('numbers', _batch(data=[[1] * 3072] * 4), 'pixels'),
          ('floats', _batch(data=np.zeros((4, 3072))), "type b'f8'"),
        )
      ),
    )
  },
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_told_and_nothing_is_left(
  damage, archive, tmp_path, monkeypatch
):
  form, change, harm, message = DAMAGES[damage]
  monkeypatch.chdir(tmp_path)
  folder = archive('cifar10', form, change(Noise('cifar10').files(form)), harm)
  with pytest.raises(
    errors.UserError, match=f'{form}.tar.gz is damaged: .*{message}.*; fetch'
  ) as told:
    prepare.prepare('cifar10', str(tmp_path / 'data'), folder)
  assert '\n' not in str(told.value)
  assert not [*(tmp_path / 'data').rglob('dataset_info.json')]
  assert not (tmp_path / 'evil').exists()


def test_pickles_of_python_2():
  array = np.arange(12, dtype=np.uint8).reshape(3, 4)
  for order in 'CF':
    found = unpickling.loads(
      pickled({'data': np.array(array, order=order), 'labels': [3, 300]})
    )
    np.testing.assert_array_equal(found[b'data'], array)
    assert found[b'labels'] == [3, 300]
  first = b'\x80\x02}q\x01(U\x06labelsq\x02]q\x03(K\x06K\te'
  array = (
    b'U\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray'
    b'\nq\x06K\x00\x85q\x07U\x01bq\x08\x87q\tRq\n(K\x01K\x02K\x01\x86q\x0bcnumpy'
    b'\ndtype\nq\x0cU\x02u1q\rK\x00K\x01\x87q\x0eRq\x0f(K\x03U\x01|q\x10NNNJ\xff'
    b'\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x07\x08tbu.'
  )
  found = unpickling.loads(first + array)
  assert found[b'labels'] == [6, 9]
  np.testing.assert_array_equal(found[b'data'], [[7], [8]])


@pytest.mark.parametrize(
  'program',
  [
    b'cbuiltins\neval\n(V1\ntR.',
    b'cos\nsystem\n(Vtrue\ntR.',
    b'cnumpy\nload\n(Vx\ntR.',
    b'cnumpy.core.multiarray\nscalar\n.',
    b'cnumpy\nndarray\n(K\x01tR.',
    b'cbn_research.data.unpickling\nloads\n.',
    b'\x80\x02\x82\x01.',  # a code of `copyreg`
    b'Vx\nP.',  # an identity of an object elsewhere
    b'cnumpy\nndarray\n)R(K\x01(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft'
    b'cnumpy\ndtype\n(U\x02u1tR\x89U\x01xtb.',
    b'cnumpy\nndarray\n)R(K\x01(K\x01tcnumpy\ndtype\n(U\x01OtR\x89U\x01xtb.',
  ],
)
def test_no_other_name_is_called(program):
  with pytest.raises(ValueError, match='the pickle '):
    unpickling.loads(program)


@pytest.mark.parametrize('how', ['flip', 'cut', 'zero'])
def test_random_damage_is_an_error_or_a_dictionary(how, tmp_path):
  content = pickled(Noise('cifar10').dictionaries()['data_batch_1'])
  path, rng = tmp_path / 'pickle', random.Random(how)
  for _ in range(100):
    path.write_bytes(content)
    HARMS[how](path, rng)
    with contextlib.suppress(ValueError):
      assert isinstance(unpickling.loads(path.read_bytes()), dict)


@pytest.mark.slow
@pytest.mark.parametrize('form', FORMS)
def test_all_of_cifar10(form, real_cifar10, archive, tmp_path):
  """An archive of all real examples, in the order in which they are stored."""
  import tensorflow_datasets as tfds

  stored = data.load({'name': 'cifar10'}, real_cifar10)
  features = builders.find('cifar10', real_cifar10).info.features
  noise = Noise('cifar10')
  noise.classes = [features['label'].names]
  names = {'train': noise.info.train_files, 'test': noise.info.test_files}
  for split, files in names.items():
    images, labels = stored.split(split)
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    assert len(labels) == 10_000 * len(files)
    for i, file in enumerate(files):
      part = slice(10_000 * i, 10_000 * (i + 1))
      noise.rows[file] = labels[part, None].astype(np.uint8), pixels[part]
  prepare.prepare(
    'cifar10', str(tmp_path), archive('cifar10', form, noise.files(form))
  )
  ours = data.load({'name': 'cifar10'}, str(tmp_path))
  for split in names:
    source = builders.find('cifar10', str(tmp_path)).as_data_source(
      split=split, decoders={'image': tfds.decode.SkipDecoding()}
    )
    examples = source.__getitems__(range(len(source)))
    numbers = [int(e['id'].decode().split('_')[1]) for e in examples]
    assert sorted(numbers) == [*range(len(numbers))] != numbers
    for mine, theirs in zip(
      ours.split(split), stored.split(split), strict=True
    ):
      np.testing.assert_array_equal(mine, theirs[numbers])
