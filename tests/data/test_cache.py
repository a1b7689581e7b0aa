import os
import pathlib
import random

import numpy as np
import pytest

from bn_research import data
from bn_research.data import decoding
from tests.damage import HARMS


@pytest.fixture
def decoded(monkeypatch):
  """The splits that were decoded rather than read from the kept copy."""
  splits = []
  decode = decoding.decode

  def spy(builder, split):
    splits.append(split)
    return decode(builder, split)

  monkeypatch.setattr(decoding, 'decode', spy)
  return splits


def _load(data_dir, **config):
  return data.load({'name': 'mnist', **config}, data_dir)


def _kept(cache_home):
  return sorted(path for path in cache_home.rglob('*') if path.is_file())


def test_decoded_once(small_mnist, decoded, cache_home):
  first = _load(small_mnist[0])
  assert decoded == ['train', 'test']
  second = _load(small_mnist[0])
  assert decoded == ['train', 'test']
  np.testing.assert_array_equal(first.train.images, second.train.images)
  np.testing.assert_array_equal(first.test.labels, second.test.labels)
  assert second.train.labels.dtype == np.int32
  assert len(_kept(cache_home)) == 2


def test_a_slice_is_not_the_whole(small_mnist, decoded):
  whole = _load(small_mnist[0]).train
  part = _load(small_mnist[0], train='train[:7]').train
  assert decoded == ['train', 'test', 'train[:7]']
  np.testing.assert_array_equal(part.images, whole.images[:7])


def test_files_that_changed_are_decoded_anew(small_mnist, decoded, cache_home):
  _load(small_mnist[0])
  for shard in pathlib.Path(small_mnist[0]).rglob('*train.array_record*'):
    os.utime(shard, ns=(0, 0))
  _load(small_mnist[0])
  assert decoded == ['train', 'test', 'train']
  assert len(_kept(cache_home)) == 2


@pytest.mark.slow
@pytest.mark.parametrize('how', HARMS)
def test_no_damage_to_a_copy_is_silent(how, small_mnist, cache_home):
  first = _load(small_mnist[0])
  contents = {path: path.read_bytes() for path in _kept(cache_home)}
  rng = random.Random(how)
  for _ in range(100):
    path = rng.choice([*contents])
    HARMS[how](path, rng)
    again = _load(small_mnist[0])
    for split in ('train', 'test'):
      for a, b in zip(first.split(split), again.split(split), strict=True):
        np.testing.assert_array_equal(a, b)
    path.write_bytes(contents[path])


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 but no more'])
def test_a_damaged_copy_is_replaced(content, small_mnist, decoded, cache_home):
  first = _load(small_mnist[0])
  for path in _kept(cache_home):
    path.write_bytes(content)
  np.testing.assert_array_equal(
    first.train.images, _load(small_mnist[0]).train.images
  )
  _load(small_mnist[0])
  assert decoded == ['train', 'test'] * 2


def test_a_flipped_bit_is_noticed(small_mnist, decoded, cache_home):
  _load(small_mnist[0])
  for path in _kept(cache_home):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
  _load(small_mnist[0])
  assert decoded == ['train', 'test'] * 2


def test_nowhere_to_keep_it(small_mnist, decoded, cache_home, caplog):
  cache_home.touch()  # a file where the folder should be
  for _ in range(2):
    assert len(_load(small_mnist[0]).train.labels) == 30
  assert decoded == ['train', 'test'] * 2
  assert 'not kept' in caplog.text


def test_arrays_stored_as_they_are_need_no_copy(tmp_path, cache_home):
  data.load({'name': 'digits'}, str(tmp_path / 'data'))
  assert _kept(cache_home) == []
