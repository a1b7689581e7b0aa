"""Decodes all examples of a split in TFDS into two arrays."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

# The raw records of a chunk bound the memory beside the decoded images.
_CHUNK = 1000

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
"""The modes of Pillow, by the number of channels."""


def decode(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Decodes a split of images of one shape.

  TFDS checks and converts each feature of each record with code in Python. For
  encoded images, this function parses a record once, and decodes nothing except
  the image and the label. The time for CIFAR-10 is less than half.

  Args:
    builder: The TFDS builder of a dataset with the features `image`, of one
      shape, and `label`.
    split: A split, or a slice of splits.

  Returns:
    Images, (num_examples, height, width, channels) uint8, and labels,
    (num_examples,) int32.

  Raises:
    OSError, RuntimeError, ValueError: If a record is damaged.
  """
  import tensorflow_datasets as tfds

  feature = builder.info.features['image']
  if isinstance(feature, tfds.features.Image):
    return _decode_images(builder, split, feature.shape)
  source = builder.as_data_source(split=split)
  examples = source.__getitems__(range(len(source)))
  images = np.stack([example['image'] for example in examples])
  labels = np.array([example['label'] for example in examples], np.int32)
  return images, labels


def _decode_images(
  builder: Any, split: str, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  source = raw_source(builder, split)
  images = np.empty((len(source), *shape), np.uint8)
  labels = np.empty(len(source), np.int32)
  for start in range(0, len(source), _CHUNK):
    chunk = range(start, min(start + _CHUNK, len(source)))
    for i, record in zip(chunk, source.__getitems__(chunk), strict=True):
      try:
        encoded, labels[i] = parse(record)
      except ValueError as error:
        raise ValueError(f'record {i} of {split} is {error}') from error
      images[i] = _pixels(encoded, shape)
  return images, labels


def raw_source(builder: Any, split: str) -> Any:
  """Returns the records of a split for random access, as bytes for `parse`.

  Args:
    builder: The TFDS builder of a dataset.
    split: A split, or a slice of splits.
  """
  from tensorflow_datasets import decode as methods

  return builder.as_data_source(
    split=split, deserialize_method=methods.DeserializeMethod.RAW_BYTES
  )


def parse(record: bytes) -> tuple[bytes, int]:
  """Returns the encoded image and the label of a record.

  Args:
    record: A record of a dataset with an image file `image` and a `label`.

  Raises:
    ValueError: If the record is damaged.
  """
  from google.protobuf import message
  from tensorflow_datasets.proto import tf_example_pb2

  try:
    features = tf_example_pb2.Example.FromString(record).features.feature
    label = features['label'].int64_list.value[0]
    return features['image'].bytes_list.value[0], label
  except (message.DecodeError, IndexError) as error:
    raise ValueError('no example') from error


def _pixels(encoded: bytes, shape: Sequence[int]) -> np.ndarray:
  """Returns the pixels of an encoded image.

  Raises:
    OSError: If Pillow cannot decode the image.
    ValueError: If the image has a wrong size.
  """
  from PIL import Image

  height, width, channels = shape
  with Image.open(io.BytesIO(encoded)) as image:
    # An assignment to an array would stretch a single row or column silently.
    if image.size != (width, height):
      raise ValueError(
        f'an image is of {image.height} x {image.width} pixels instead of'
        f' {height} x {width}'
      )
    mode = MODES[channels]
    right = image if image.mode == mode else image.convert(mode)
    return np.asarray(right).reshape(shape)
