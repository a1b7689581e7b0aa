"""Streams of small datasets, prepared for real."""

import io
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bn_research import data, errors
from bn_research.data import builders, streams
from bn_research.data.streams import batches, photometric, windows

SIZES = [(50, 37), (37, 50), (40, 40), (64, 33)]


def opened(data_dir, name='cifar10', share=None, splits=(), **options):
  config = {'name': name, 'stream': {'threads': 2, **options}}
  if name == 'imagenet2012':
    config['test'] = 'validation'
  return streams.open_stream(config, data_dir, splits, share)


def taken(stream, start, stop, seed=0, batch_size=6):
  return list(stream.batches(batch_size, seed, start, stop))


def same(first, second):
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)


@pytest.fixture
def small_imagenet(write):
  """Returns the data_dir of 20 and 8 JPEGs of several sizes, in two files."""
  from tensorflow_datasets.datasets.imagenet2012 import (
    imagenet2012_dataset_builder as imagenet,
  )

  rng = np.random.default_rng(0)

  def example(k):
    width, height = SIZES[k % 4]
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
    file = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, 'JPEG')
    file.seek(0)
    return {'file_name': f'{k}.JPEG', 'image': file, 'label': 10 * k}

  examples = [example(k) for k in range(28)]

  class Imagenet2012(imagenet.Builder):
    name = 'imagenet2012'

  return write(
    Imagenet2012,
    {'train': examples[:20], 'validation': examples[20:]},
    num_shards=2,
  )


def damage(data_dir, indices, split='train', name='cifar10'):
  """Overwrites the image of each of some stored examples."""
  builder = tfds.builder(name, data_dir=data_dir)
  source = builder.as_data_source(
    split=split, decoders={'image': tfds.decode.SkipDecoding()}
  )
  for index in indices:
    image = source[index]['image']
    for path in pathlib.Path(builder.data_path).glob(f'*{split}*'):
      content = path.read_bytes()
      if image in content:
        path.write_bytes(content.replace(image, b'x' * len(image)))
        break
    else:
      raise AssertionError('the image is compressed')


def test_the_examples_and_the_order_of_a_dataset_in_memory(small_cifar10):
  data_dir, images, labels = small_cifar10
  stream = opened(data_dir)
  assert stream.num_examples == {'train': 40, 'test': 10}
  assert stream.input_shape == (32, 32, 3)
  assert (stream.name, stream.num_classes) == ('cifar10', 10)
  found = taken(stream, 0, 20, seed=3)
  indices = data.batch_indices(40, 6, 3, 0, 20)
  for batch, row in zip(found, indices, strict=True):
    np.testing.assert_array_equal(batch.images, images[row])
    np.testing.assert_array_equal(batch.labels, labels[row])
    assert (batch.images.dtype, batch.labels.dtype) == (np.uint8, np.int32)


def test_real_cifar10_has_the_order_of_a_dataset_in_memory(real_cifar10):
  stream = opened(real_cifar10)
  source = tfds.data_source('cifar10', data_dir=real_cifar10, split='train')
  # The batches of 390 and 391 are in two epochs.
  found = taken(stream, 389, 392, batch_size=128)
  indices = data.batch_indices(50_000, 128, 0, 389, 392)
  for batch, row in zip(found, indices, strict=True):
    expected = source.__getitems__(row.tolist())
    np.testing.assert_array_equal(
      batch.images, np.stack([example['image'] for example in expected])
    )
    np.testing.assert_array_equal(
      batch.labels, [example['label'] for example in expected]
    )


CHANGED = {'image_size': 16, 'distort': 'full', 'min_area': 0.2}


@pytest.mark.parametrize('shuffle', ['examples', 'within_shards', 'shards'])
def test_a_batch_is_a_function_of_the_seed_and_the_step(
  shuffle, small_imagenet
):
  options = {'name': 'imagenet2012', 'shuffle': shuffle, **CHANGED}
  whole = taken(opened(small_imagenet, **options), 0, 12)
  assert {batch.images.shape for batch in whole} == {(6, 16, 16, 3)}
  stream = opened(small_imagenet, **options)
  for start in (0, 1, 7):
    same(taken(stream, start, 12), whole[start:])
  other = taken(stream, 0, 12, seed=1)
  assert all(
    (a.images != b.images).any() for a, b in zip(whole, other, strict=True)
  )


def test_an_epoch_again_has_other_windows(small_imagenet):
  stream = opened(small_imagenet, 'imagenet2012', shuffle='shards', **CHANGED)
  first, second = taken(stream, 0, 2, batch_size=20)
  of = lambda batch: dict(zip(batch.labels.tolist(), batch.images, strict=True))
  first, second = of(first), of(second)
  assert first.keys() == second.keys() == set(first)
  assert all((first[label] != second[label]).any() for label in first)


@pytest.mark.parametrize('count', [2, 3])
def test_processes_share_a_batch(count, small_imagenet):
  options = {'name': 'imagenet2012', **CHANGED}
  whole = opened(small_imagenet, **options)
  parts = [
    opened(small_imagenet, share=batches.Share(index, count), **options)
    for index in range(count)
  ]
  indices = np.array([[0, 1, 2, 3, 4, 5], [6, 7, -1, -1, -1, -1]], np.int32)
  for read in (
    lambda stream: taken(stream, 3, 6),
    lambda stream: list(stream.evaluation('test', indices)),
  ):
    shares = [read(part) for part in parts]
    for batch, *shared in zip(read(whole), *shares, strict=True):
      for key in ('images', 'labels'):
        np.testing.assert_array_equal(
          getattr(batch, key),
          np.concatenate([getattr(part, key) for part in shared]),
        )


def test_a_batch_that_processes_do_not_divide(small_cifar10):
  stream = opened(small_cifar10[0], share=batches.Share(0, 4))
  with pytest.raises(errors.UserError, match=r'batch_size=6 .* 4 processes'):
    stream.batches(6, 0, 0, 1)
  with pytest.raises(errors.UserError, match=r'batch_size=6 .* 4 processes'):
    stream.evaluation('test', np.zeros((1, 6), np.int32))


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(small_imagenet):
  options = {'name': 'imagenet2012', **CHANGED}
  expected = taken(opened(small_imagenet, **options), 2, 9)
  same(taken(opened(small_imagenet, workers=2, **options), 2, 9), expected)


_KILLED = """
import json, multiprocessing, sys, time
from bn_research.data import streams
if __name__ == '__main__':
  config = {'name': 'cifar10', 'stream': {'workers': 2}}
  batches = streams.open_stream(config, sys.argv[1]).batches(6, 0, 0, 1000)
  next(batches)
  print(json.dumps([p.pid for p in multiprocessing.active_children()]))
  sys.stdout.flush()
  time.sleep(60)
"""


@pytest.mark.slow
def test_worker_processes_end_after_a_run_that_was_killed(
  small_cifar10, tmp_path
):
  script = tmp_path / 'script.py'
  script.write_text(_KILLED)
  run = subprocess.Popen(
    [sys.executable, script, small_cifar10[0]], stdout=subprocess.PIPE
  )
  workers = json.loads(run.stdout.readline())
  run.kill()
  run.wait()
  run.stdout.close()
  assert len(workers) == 2
  deadline = time.monotonic() + 20
  while any(map(is_alive, workers)):
    assert time.monotonic() < deadline
    time.sleep(0.1)


def is_alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  # A process that nobody waits for stays in the table of processes.
  status = pathlib.Path(f'/proc/{pid}/stat')
  return not status.exists() or status.read_text().split()[2] != 'Z'


def test_evaluation(small_imagenet):
  stream = opened(small_imagenet, 'imagenet2012', image_size=16)
  indices = np.array([[0, 1, 2], [3, 4, 5], [6, 7, -1]], np.int32)
  found = list(stream.evaluation('test', indices))
  source = tfds.data_source(
    'imagenet2012', data_dir=small_imagenet, split='validation'
  )
  images = np.concatenate([batch.images for batch in found])
  labels = np.concatenate([batch.labels for batch in found])
  assert labels.tolist() == [example['label'] for example in source] + [-1]
  assert not images[-1].any()
  for image, example in zip(images[:-1], source, strict=True):
    whole = Image.fromarray(example['image'])
    scale = 16 * 8 / 7 / min(whole.size)
    size = [round(side * scale) for side in whole.size]
    scaled = whole.resize(size, Image.Resampling.BILINEAR)
    left, top = ((side - 16) // 2 for side in size)
    expected = np.asarray(scaled, float)[top : top + 16, left : left + 16]
    # The oracle rounds the size and the corner: up to a pixel of distance.
    assert np.abs(image - expected).mean() < 12


@pytest.mark.parametrize('crops', [10, 144])
def test_evaluation_with_several_windows(crops, small_imagenet):
  stream = opened(small_imagenet, 'imagenet2012', image_size=16, crops=crops)
  (batch,) = stream.evaluation('test', np.array([[0, -1]], np.int32))
  assert batch.images.shape == (2, crops, 16, 16, 3)
  half = crops // 2
  np.testing.assert_array_equal(
    batch.images[0, :half], batch.images[0, half:, :, ::-1]
  )
  if crops == 10:
    single = opened(small_imagenet, 'imagenet2012', image_size=16)
    (one,) = single.evaluation('test', np.array([[0]], np.int32))
    np.testing.assert_array_equal(one.images[0], batch.images[0, 0])


def test_sample(small_cifar10):
  data_dir, images, labels = small_cifar10
  indices = np.array([3, 39, 0, *range(20)])
  found, classes = opened(data_dir, distort='full').sample(indices)
  np.testing.assert_array_equal(found, images[indices])
  np.testing.assert_array_equal(classes, labels[indices])


def test_a_corrupt_example_is_counted_and_replaced(small_cifar10, caplog):
  data_dir, images, labels = small_cifar10
  damage(data_dir, [7, 8, 39])
  stream = opened(data_dir, max_corrupt=3)
  found = taken(stream, 0, 20)
  instead = np.arange(40)
  instead[[7, 8, 39]] = 9, 9, 0
  for batch, row in zip(
    found, instead[data.batch_indices(40, 6, 0, 0, 20)], strict=True
  ):
    np.testing.assert_array_equal(batch.images, images[row])
    np.testing.assert_array_equal(batch.labels, labels[row])
  assert stream.unreadable['train'].keys() == {7, 8, 39}
  assert len(caplog.records) == 3  # Each example is told once.
  sampled, _ = stream.sample(np.arange(40))
  np.testing.assert_array_equal(sampled, images[instead])


def test_a_corrupt_example_is_left_out_of_the_evaluation(small_cifar10):
  data_dir, _, labels = small_cifar10
  damage(data_dir, [7, 8])
  stream = opened(data_dir)
  (batch,) = stream.evaluation('train', np.arange(40)[None])
  np.testing.assert_array_equal(np.flatnonzero(batch.labels < 0), [7, 8])
  np.testing.assert_array_equal(
    np.delete(batch.labels, [7, 8]), np.delete(labels, [7, 8])
  )


def test_too_many_corrupt_examples(small_cifar10):
  data_dir, *_ = small_cifar10
  damage(data_dir, [7, 8, 30])
  stream = opened(data_dir, max_corrupt=2)
  line = (
    r'cifar10 train has 3 unreadable examples \((\d+, ){2}\d+\), and'
    r' config.data.stream.max_corrupt=2; the first is \d+ in .*cifar10-train.*'
    r': .*; prepare the dataset again$'
  )
  with pytest.raises(errors.UserError, match=line):
    taken(stream, 0, 20)


def test_a_missing_file(small_cifar10):
  data_dir, *_ = small_cifar10
  folder = pathlib.Path(tfds.builder('cifar10', data_dir=data_dir).data_path)
  next(folder.glob('*train*00001-of-00003')).unlink()
  with pytest.raises(errors.UserError, match=r'open.* failed.*prepare'):
    taken(opened(data_dir), 0, 20)


def test_a_split_without_a_readable_example(small_cifar10):
  data_dir, *_ = small_cifar10
  folder = pathlib.Path(tfds.builder('cifar10', data_dir=data_dir).data_path)
  for path in folder.glob('*test*'):
    path.unlink()
  stream = opened(data_dir, max_corrupt=1000)
  with pytest.raises(errors.UserError, match='test has 10 unreadable'):
    list(stream.evaluation('test', np.arange(10)[None]))


def test_labels_that_are_no_class(write):
  from tensorflow_datasets.image_classification import cifar

  image = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
  example = {'id': '0', 'image': image, 'label': -1}
  data_dir = write(cifar.Cifar10, {'train': [example], 'test': [example]})
  with pytest.raises(errors.UserError, match='the label is -1, and no class'):
    taken(opened(data_dir), 0, 1, batch_size=1)


@pytest.mark.slow
def test_a_bundled_dataset_of_plain_arrays(tmp_path):
  stream = opened(str(tmp_path), 'digits', splits=('validation',))
  memory = data.load({'name': 'digits'}, str(tmp_path))
  (batch,) = taken(stream, 4, 5, batch_size=50)
  (row,) = data.batch_indices(len(memory.train.labels), 50, 0, 4, 5)
  np.testing.assert_array_equal(batch.images, memory.train.images[row])
  assert stream.input_shape == (8, 8, 1)
  assert stream.num_examples.keys() == {'train', 'test', 'validation'}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'shuffle': 'shard'}, "shuffle='shard'; choose examples, within_shards"),
    ({'image_size': 0}, 'image_size=0; choose a whole number from 1'),
    ({'image_size': 16, 'crops': 2}, 'crops=2; choose 1, 10, 144'),
    ({'crops': 10}, 'crops=10 needs image_size'),
    ({'distort': 'some'}, "distort='some'; choose none, reduced, full"),
    ({'min_area': 0.0}, r'min_area=0.0; choose a number in \(0, 1\]'),
    ({'min_area': float('nan')}, 'min_area=nan'),
    ({'max_corrupt': -1}, 'max_corrupt=-1'),
    ({'threads': 0}, 'threads=0'),
    ({'workers': -1}, 'workers=-1'),
    ({'size': 3}, "no option 'size'"),
    ({'image_size': '16'}, "image_size='16' is not of type"),
  ],
)
def test_options_out_of_range(options, message):
  with pytest.raises(errors.UserError, match=f'config.data.stream.*{message}'):
    opened('nowhere', **options)


def test_a_stream_that_is_no_section():
  with pytest.raises(errors.UserError, match='stream=True is no section'):
    streams.open_stream({'name': 'cifar10', 'stream': True})
  with pytest.raises(errors.UserError, match="no key 'splits'"):
    streams.open_stream({'name': 'cifar10', 'stream': {}, 'splits': 3})


def test_splits_that_do_not_fit(small_cifar10):
  data_dir, *_ = small_cifar10
  with pytest.raises(errors.UserError, match=r'config.data.train.*other'):
    streams.open_stream(
      {'name': 'cifar10', 'train': 'other', 'stream': {}}, data_dir
    )
  with pytest.raises(errors.UserError, match=r'config.data.test.*is empty'):
    streams.open_stream(
      {'name': 'cifar10', 'test': 'test[:0]', 'stream': {}}, data_dir
    )
  stream = opened(data_dir)
  with pytest.raises(errors.UserError, match=r'batch_size=41 .* 40'):
    stream.batches(41, 0, 0, 1)


def test_slices(small_cifar10):
  data_dir, images, _ = small_cifar10
  for shuffle in ('examples', 'shards'):
    config = {'name': 'cifar10', 'train': 'train[10:31]'}
    stream = streams.open_stream(
      {**config, 'stream': {'shuffle': shuffle}}, data_dir
    )
    (batch,) = taken(stream, 0, 1, batch_size=21)
    expected = {image.tobytes() for image in images[10:31]}
    assert {image.tobytes() for image in batch.images} == expected


@pytest.mark.parametrize('kind', [tfds.features.Image, tfds.features.Tensor])
@pytest.mark.parametrize('is_scaled', [False, True])
def test_two_channels_are_refused_before_an_example_is_read(kind, is_scaled):
  options = {} if kind is tfds.features.Image else {'dtype': np.uint8}
  features = {'label': tfds.features.ClassLabel(num_classes=3)}

  def check(channels, **how):
    features['image'] = kind(shape=(8, 8, channels), **options)
    return builders.check_features('mine', features, **how)

  for channels in (1, 3, 4):
    assert check(channels, is_stream=True, is_scaled=is_scaled) == 3
  with pytest.raises(errors.UserError, match='mine has images of 2 channels'):
    check(2, is_stream=True, is_scaled=is_scaled)
  # In memory, only files need a decoder.
  if kind is tfds.features.Tensor:
    assert check(2) == 3
  else:
    with pytest.raises(errors.UserError, match='only images of 1, 3, 4'):
      check(2)


def test_images_of_several_sizes_need_a_size(small_imagenet):
  with pytest.raises(errors.UserError, match=r'\(None, None, 3\).*image_size'):
    opened(small_imagenet, 'imagenet2012')


def test_imagenet_that_is_not_prepared(tmp_path):
  with pytest.raises(errors.UserError) as caught:
    opened(str(tmp_path), 'imagenet2012', image_size=224)
  line = str(caught.value)
  assert '\n' not in line
  for part in (
    'imagenet2012 5.1.0 is not prepared',
    'tfds build imagenet2012 --file_format=array_record --data_dir=',
    '--manual_dir=',
    'ILSVRC2012_img_train.tar',
  ):
    assert part in line


def test_every_file_may_be_open(monkeypatch):
  resource = pytest.importorskip('resource')
  from bn_research.data.streams import records

  given = []
  monkeypatch.setattr(resource, 'getrlimit', lambda kind: (100, 2000))
  monkeypatch.setattr(
    resource, 'setrlimit', lambda kind, limits: given.append(limits)
  )
  for count in (50, 1500, 5000):
    records._allow_open_files(count)
  assert given == [(1500, 2000), (2000, 2000)]


def test_window_and_colours_have_draws_of_their_own(
  small_imagenet, monkeypatch
):
  seen = {}

  def keep(name, function):
    def call(*args):
      seen.setdefault(name, []).append(args[1])
      return function(*args)

    return call

  window, distort = windows.random_window, photometric.distort
  monkeypatch.setattr(windows, 'random_window', keep('window', window))
  monkeypatch.setattr(photometric, 'distort', keep('colours', distort))
  stream = opened(
    small_imagenet, 'imagenet2012', image_size=4, distort='full', threads=1
  )
  taken(stream, 0, 1)
  pairs = list(zip(seen['window'], seen['colours'], strict=True))
  assert pairs
  for first, second in pairs:
    assert len(second) == photometric.NUM_DRAWS
    assert not set(first.tolist()) & set(second.tolist())
