"""Datasets by name, whole, as NumPy arrays."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bn_research import errors
from bn_research.data import builders, cache, prepare


class Split(NamedTuple):
  """Images and their classes."""

  images: np.ndarray  # shape=(N, height, width, channels), dtype=uint8
  labels: np.ndarray  # shape=(N,), dtype=int32


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What a run trains on and what it is tested on."""

  name: str
  train: Split
  test: Split
  num_classes: int


def load(config: Mapping[str, Any], data_dir: str | None = None) -> Dataset:
  """Loads a prepared image-classification dataset; never downloads one.

  The digits, which come with scikit-learn, are prepared on first use.

  Args:
    config: `name`, such as `'digits'` or `'mnist'`, and optionally `train` and
      `test`: splits or slices of them, such as `'train[:50000]'` (see
      https://www.tensorflow.org/datasets/splits). Other keys are not read.
    data_dir: Where TFDS keeps its datasets; its own default where None.

  Raises:
    UserError: If the dataset or a split is unknown, not prepared, half written,
      damaged, empty, or is not made of uint8 images of one shape and classes.
  """
  name = config['name']
  builder = builders.find(name, data_dir)
  if builder.name == 'digits' and not builder.data_path.exists():
    builder = prepare.prepare('digits', data_dir)
  builders.check_prepared(builder, data_dir)
  num_classes = _check_features(name, builder.info.features)
  return Dataset(
    name=name,
    train=_read(builder, 'train', str(config.get('train', 'train'))),
    test=_read(builder, 'test', str(config.get('test', 'test'))),
    num_classes=num_classes,
  )


def _check_features(name: str, features: Any) -> int:
  """Returns the number of classes."""
  import tensorflow_datasets as tfds

  kinds = {
    'image': (tfds.features.Image, tfds.features.Tensor),
    'label': tfds.features.ClassLabel,
  }
  for key, kind in kinds.items():
    if key not in features or not isinstance(features[key], kind):
      raise errors.UserError(
        f'{name} is not an image-classification set: it has no {key} among '
        f'{", ".join(features)}'
      )
  image = features['image']
  if image.np_dtype != np.uint8 or len(image.shape) != 3 or None in image.shape:
    raise errors.UserError(
      f'{name} has images of shape {image.shape} and type {image.np_dtype}; '
      'only uint8 images of one shape (height, width, channels) can be loaded'
    )
  return features['label'].num_classes


def _read(builder: Any, key: str, split: str) -> Split:
  import tensorflow_datasets as tfds

  try:
    info = builder.info.splits[split]
  except ValueError as error:
    reason = str(error).splitlines()[-1]
    raise errors.UserError(f'data.{key}={split!r}: {reason}') from error
  if info.num_examples < 1:
    raise errors.UserError(f'data.{key}={split!r} of {builder.name} is empty')
  try:
    # Arrays stored as they are come as quickly from TFDS as from a copy.
    if not isinstance(builder.info.features['image'], tfds.features.Image):
      return Split(*_decode(builder, split))
    return Split(
      *cache.fetch(
        f'{builder.name}-{builder.version}',
        info.file_instructions,
        lambda: _decode(builder, split),
      )
    )
  except (OSError, RuntimeError, ValueError) as error:
    raise errors.UserError(
      f'{builder.data_path} cannot be read: {str(error).splitlines()[0]}; if '
      'damaged, delete it and prepare it again'
    ) from error


def _decode(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
  source = builder.as_data_source(split=split)
  examples = source.__getitems__(range(len(source)))
  images = np.stack([example['image'] for example in examples])
  labels = np.array([example['label'] for example in examples], np.int32)
  return images, labels
