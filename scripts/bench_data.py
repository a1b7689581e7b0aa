#!/usr/bin/env python
"""Times a stream beside Pillow alone, side by side in one process.

python scripts/bench_data.py [--data_dir=DIR]

Pillow's loop has the encoded images in memory, and decodes, crops and scales
the same windows of the same images. The stream also finds the order, reads
the records from files, and makes batches. The turns alternate, and both have
the same number of threads. A ratio is that of two turns of one round, and what
is printed is the median over rounds.

* jpeg: generated photographs of 500 x 375 pixels, cropped to 224 x 224;
* cifar10: images of 32 x 32 pixels as stored, from --data_dir; generated where
  not given.
"""

import concurrent.futures
import dataclasses
import io
import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import timing
from absl import app, flags, logging
from PIL import Image

from bn_research.data import order, streams
from bn_research.data.streams import batches, orders, prefetching, windows

_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Where a prepared CIFAR-10 is; noise where not given.'
)
_SECONDS = flags.DEFINE_integer('seconds', 60, 'Seconds for each table.')

_BATCH = 64
_SIZE = 224
_LEAST = 0.8  # The rate of a stream, as a part of the rate of Pillow.


@dataclasses.dataclass(frozen=True)
class Case:
  """A dataset, and the work of Pillow on an image of the dataset.

  Attributes:
    name: The name for the table.
    stream: A function from a number of threads to a stream.
    decode: Pillow's work: a function of bytes and of the draws of an image.
    num_batches: The number of batches in a turn.
  """

  name: str
  stream: Callable[[int], streams.Stream]
  decode: Callable[[bytes, np.ndarray], np.ndarray]
  num_batches: int


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  print(f'{timing.device()}; {prefetching.num_cores()} cores may be used')
  print(f'{"":10}{"threads":>8}{"Pillow/s":>10}{"stream/s":>10}{"ratio":>8}')
  with tempfile.TemporaryDirectory() as folder:
    for case in _cases(folder):
      for threads in sorted({1, prefetching.num_cores()}):
        _print_row(case, threads)


def _cases(folder: str) -> Iterator[Case]:
  _prepare(Photographs, folder)
  yield Case('jpeg', _opener('photographs', folder, _SIZE), _cropped, 4)
  if not _DATA_DIR.value:
    _prepare(Noise, folder)
  name = 'cifar10' if _DATA_DIR.value else 'noise'
  where = _DATA_DIR.value or folder
  yield Case(name, _opener(name, where, None), _whole, 32)


def _print_row(case: Case, threads: int) -> None:
  stream = case.stream(threads)
  stored, draws = _stored(stream, case.num_batches)
  steps = range(case.num_batches)

  def decode(step: int) -> np.ndarray:
    rows = zip(stored[step], draws[step], strict=True)
    return np.stack([case.decode(*row) for row in rows])

  def alone() -> None:
    if threads == 1:
      for step in steps:
        decode(step)
    else:
      with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, steps))

  def streamed() -> None:
    for _ in stream.batches(_BATCH, 0, 0, case.num_batches):
      pass

  _check_same(stream, decode)
  turns = {'pillow': alone, 'stream': streamed}
  rounds = timing.rounds_within(turns, _SECONDS.value / 2)
  seconds = timing.in_turns(turns, rounds)
  count = _BATCH * case.num_batches
  rates = [count / statistics.median(seconds[name]) for name in turns]
  ratio = timing.ratio(seconds['pillow'], seconds['stream'])
  note = '' if case.name != 'jpeg' or ratio >= _LEAST else f' below {_LEAST}'
  print(
    f'{case.name:10}{threads:8}{rates[0]:10,.0f}{rates[1]:10,.0f}'
    f'{ratio:8.2f}{note}'
  )


def _stored(
  stream: streams.Stream, num_batches: int
) -> tuple[list[list[bytes]], list[np.ndarray]]:
  """Returns the encoded images of each batch, and the draws of the windows."""
  records = stream.records('train')
  rows = order.batch_indices(len(records), _BATCH, 0, 0, num_batches)
  stored: list[Any] = [
    [example.image for example in map(_readable, records.read(row.tolist()))]
    for row in rows
  ]
  draws = [
    order.generator(0, step, orders.DRAWS).random((_BATCH, batches.NUM_DRAWS))
    for step in range(num_batches)
  ]
  return stored, draws


def _readable(found: Any) -> Any:
  if isinstance(found, Exception):
    raise found
  return found


def _check_same(
  stream: streams.Stream, decode: Callable[[int], np.ndarray]
) -> None:
  """Raises a RuntimeError if both contenders do not do the same work."""
  (batch,) = stream.batches(_BATCH, 0, 0, 1)
  if (decode(0) != batch.images).any():
    raise RuntimeError('Pillow alone decodes other pixels than the stream')


def _cropped(content: bytes, draws: np.ndarray) -> np.ndarray:
  image = Image.open(io.BytesIO(content))
  window = windows.random_window(image.size, draws[: windows.NUM_DRAWS], 0.08)
  scale = _SIZE / min(window.width, window.height)
  image.draft(None, (int(image.width * scale), int(image.height * scale)))
  left, top, width, height, _ = window
  box = (left, top, left + width, top + height)
  bilinear = Image.Resampling.BILINEAR
  return np.asarray(image.resize((_SIZE, _SIZE), bilinear, box))


def _whole(content: bytes, draws: np.ndarray) -> np.ndarray:
  del draws
  return np.asarray(Image.open(io.BytesIO(content)))


def _opener(
  name: str, folder: str, size: int | None
) -> Callable[[int], streams.Stream]:
  def stream(threads: int) -> streams.Stream:
    options = {'threads': threads, 'image_size': size}
    config = {'name': name, 'test': 'train', 'stream': options}
    return streams.open_stream(config, folder)

  return stream


class _Generated(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')
  COUNT, SHAPE, KIND = 256, (375, 500, 3), 'jpeg'

  def _info(self) -> tfds.core.DatasetInfo:
    image = tfds.features.Image(shape=self.SHAPE, encoding_format=self.KIND)
    label = tfds.features.ClassLabel(num_classes=10)
    features = tfds.features.FeaturesDict({'image': image, 'label': label})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {'train': self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    for k in range(self.COUNT):
      file = io.BytesIO()
      _photograph(k, *self.SHAPE[:2]).save(file, self.KIND, quality=90)
      file.seek(0)
      yield k, {'image': file, 'label': k % 10}


class Photographs(_Generated):
  """Images with the sizes of ImageNet: in pixels, and about 100 kB each."""


class Noise(_Generated):
  """Images with the size of CIFAR-10."""

  COUNT, SHAPE, KIND = 2048, (32, 32, 3), 'png'


def _photograph(seed: int, height: int, width: int) -> Image.Image:
  """Returns an image with more power in low frequencies, as photographs."""
  rng = np.random.default_rng(seed)
  total = np.full((height, width, 3), 128.0)
  for scale in (1, 2, 4, 8, 16, 32):
    size = (-(-width // scale), -(-height // scale))
    noise = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
    layer = Image.fromarray(noise).resize((width, height))
    total += (np.asarray(layer) - 127.5) * scale**0.5 / 8
  return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def _prepare(builder: type[_Generated], folder: str) -> None:
  builder(data_dir=folder, file_format='array_record').download_and_prepare()


if __name__ == '__main__':
  app.run(main)
