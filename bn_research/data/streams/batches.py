"""Functions from the number of a batch to the batch, for use in any process."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bn_research import errors
from bn_research.data import order
from bn_research.data.streams import decoding, orders, photometric, windows
from bn_research.data.streams.decoding import Unreadable
from bn_research.data.streams.options import Options
from bn_research.data.streams.records import Records

NUM_DRAWS = windows.NUM_DRAWS + photometric.NUM_DRAWS
"""The number of draws for an image of the training."""


class Batch(NamedTuple):
  """A batch of images, or the share of a process.

  Attributes:
    images: (batch, height, width, channels) uint8, or (batch, crops, height,
      width, channels) for an evaluation with several windows of an image.
    labels: int32 (batch,); -1 for a place without an example.
    unreadable: The number and the reason of each example that was not readable.
  """

  images: np.ndarray
  labels: np.ndarray
  unreadable: tuple[tuple[int, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Share:
  """The part of each batch that a process reads.

  Attributes:
    index: The number of the process.
    count: The number of processes.
  """

  index: int = 0
  count: int = 1

  def of(self, batch: np.ndarray) -> np.ndarray:
    """Returns the rows of a process; the processes' rows in turn are the batch.

    Args:
      batch: (batch, ...), an array of the whole batch.

    Raises:
      UserError: If the processes cannot share the batch.
    """
    size, rest = divmod(len(batch), self.count)
    if rest:
      raise errors.UserError(
        f'batch_size={len(batch)} cannot be split evenly over {self.count}'
        ' processes; choose a multiple'
      )
    return batch[self.index * size : (self.index + 1) * size]


@dataclasses.dataclass(frozen=True)
class Training:
  """The batches of the training: a function of the number of a step.

  Attributes:
    records: The examples of the training split.
    shape: Height, width and channels of an image in a batch.
    options: The options of the stream.
    batch_size: The number of examples in a batch, over all processes.
    seed: The seed of the order and of the random changes.
    share: The part of this process.
  """

  records: Records
  shape: tuple[int, int, int]
  options: Options
  batch_size: int
  seed: int
  share: Share = Share()

  def indices(self, step: int) -> np.ndarray:
    """Returns the examples of a step in this process, int32."""
    epoch_order = functools.partial(
      orders.epoch_order, self.options.shuffle, self.records.shards
    )
    (indices,) = order.batch_indices(
      len(self.records),
      self.batch_size,
      self.seed,
      step,
      step + 1,
      epoch_order,
    )
    return self.share.of(indices)

  def __call__(self, step: int) -> Batch:
    """Returns the batch of a step, a function of the seed and the step."""
    generator = order.generator(self.seed, step, orders.DRAWS)
    draws = self.share.of(generator.random((self.batch_size, NUM_DRAWS)))
    return load(
      self.records,
      self.indices(step),
      self.shape,
      lambda image, place: self._change(image, draws[place]),
      self.options.max_corrupt,
    )

  def _change(self, image: Any, draws: np.ndarray) -> np.ndarray:
    """Returns the pixels of a random window, with random colours."""
    size, channels = self.options.image_size, self.shape[-1]
    if size is None:
      image = decoding.decode(image, channels)
    else:
      window = windows.random_window(
        image.size, draws[: windows.NUM_DRAWS], self.options.min_area
      )
      (image,) = decoding.cut(image, [window], channels, size)
    strength = photometric.STRENGTHS[self.options.distort]
    if strength:
      image = photometric.distort(image, draws[windows.NUM_DRAWS :], strength)
    return decoding.pixels(image)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The batches of an evaluation: a function of the number of a batch.

  Attributes:
    records: The examples of the split.
    shape: Height, width and channels of an image in a batch.
    indices: The examples of each batch, int32 (num_batches, batch). The number
      -1 fills places without an example.
    crops: The number of windows of an image, a key of `windows.EVALUATION`, or
      None for images as stored.
    num_tries: How many examples may be tried in the place of an unreadable one;
      0 to leave the place without an example.
    share: The part of this process.
  """

  records: Records
  shape: tuple[int, int, int]
  indices: np.ndarray
  crops: int | None = None
  num_tries: int = 0
  share: Share = Share()

  def __call__(self, number: int) -> Batch:
    """Returns a batch."""
    shape: tuple[int, ...] = self.shape
    if self.crops is not None and self.crops > 1:
      shape = (self.crops, *shape)
    indices = self.share.of(self.indices[number])

    def change(image: Any, place: int) -> np.ndarray:
      del place
      found = self._change(image)
      # `load` compares the shape of an image as stored, which may be wrong.
      return found if self.crops is None else found.reshape(shape)

    return load(self.records, indices, shape, change, self.num_tries)

  def _change(self, image: Any) -> np.ndarray:
    channels = self.shape[-1]
    if self.crops is None:
      return decoding.pixels(decoding.decode(image, channels))
    chosen = windows.EVALUATION[self.crops](image.size)
    found = decoding.cut(image, chosen, channels, self.shape[0])
    return np.stack([decoding.pixels(crop) for crop in found])


def load(
  records: Records,
  indices: np.ndarray,
  shape: tuple[int, ...],
  change: Callable[[Any, int], np.ndarray],
  num_tries: int,
) -> Batch:
  """Loads examples of a split.

  Args:
    records: The examples of the split.
    indices: The numbers of the examples, int32 (batch,); -1 for no example.
    shape: The shape of the results of `change`.
    change: A function from a `PIL.Image.Image` and a place in the batch to
      pixels.
    num_tries: The number of examples to try in the place of an unreadable
      example: the next examples of the split. 0 leaves the place empty.

  Returns:
    The batch. A place without an example is black, with the label -1.
  """
  images = np.zeros((len(indices), *shape), np.uint8)
  labels = np.full(len(indices), -1, np.int32)
  places = np.flatnonzero(indices >= 0)
  unreadable: dict[int, str] = {}
  found = records.read(indices[places].tolist())
  for place, index, example in zip(
    places.tolist(), indices[places].tolist(), found, strict=True
  ):
    for _ in range(num_tries + 1):
      try:
        if isinstance(example, Unreadable):
          raise example
        images[place] = _pixels(example.image, place, shape, change)
        labels[place] = example.label
        break
      except Unreadable as error:
        unreadable[index] = str(error)
        index = (index + 1) % len(records)
        (example,) = records.read([index])
  return Batch(images, labels, tuple(unreadable.items()))


def _pixels(
  stored: bytes | np.ndarray,
  place: int,
  shape: tuple[int, ...],
  change: Callable[[Any, int], np.ndarray],
) -> np.ndarray:
  found = change(decoding.opened(stored), place)
  if found.shape != shape:
    raise Unreadable(f'the image has the shape {found.shape}, and not {shape}')
  return found
