"""Finds TFDS builders by name, and checks the prepared datasets.

The functions of this module download nothing, and every error comes within a
moment.
"""

import importlib
import logging
import os
import re
import shlex
from typing import Any, NamedTuple

import numpy as np

from bn_research import errors, registry
from bn_research.data.decoding import MODES


class Own(NamedTuple):
  """A dataset that this package can prepare.

  Attributes:
    writer: The TFDS builder that writes the dataset, as `'module:class'` with a
      module of this folder.
    is_bundled: Whether the examples come with an installed package. The first
      use prepares a bundled dataset. This package registers the name of the
      dataset in TFDS.
  """

  writer: str
  is_bundled: bool = False

  def load(self) -> Any:
    """Imports and returns the class of the TFDS builder."""
    module, name = self.writer.split(':')
    return getattr(importlib.import_module(f'{__package__}.{module}'), name)


OWN = {
  'cifar10': Own('cifar:Cifar10'),
  'cifar100': Own('cifar:Cifar100'),
  'digits': Own('digits:Digits', is_bundled=True),
  'fashion_mnist': Own('mnist:FashionMnist'),
  'mnist': Own('mnist:Mnist'),
}
"""The datasets that this package can prepare, by name."""

# TFDS logs two superfluous warnings. `check_prepared` raises an error for a
# missing dataset_info.json, and the locked requirements leave out OpenCV.
_NO_NEWS = ('has no dataset_info.json', 'OpenCV is not installed')
_NAME = r'\w+(/[\w.\-]+)?(:\d+\.\d+\.\d+)?'


def find(name: str, data_dir: str | None = None) -> Any:
  """Returns the TFDS builder of a dataset, prepared or not.

  Args:
    name: A name in TFDS, for example `'mnist'`, `'mnist:3.0.1'` or
      `'emnist/letters'`.
    data_dir: The folder of the datasets; None for the default of TFDS.

  Returns:
    A `tfds.core.DatasetBuilder`.

  Raises:
    UserError: If TFDS has no dataset, version or configuration of this name, or
      if a `dataset_info.json` is damaged.
  """
  import tensorflow_datasets as tfds
  from google.protobuf import json_format

  for own in OWN.values():
    if own.is_bundled:
      own.load()  # The import registers the builder in TFDS.
  if not isinstance(name, str) or not re.fullmatch(_NAME, name):
    raise errors.UserError(
      f'config.data.name={name!r} is not a name of TFDS, such as mnist,'
      ' mnist:3.0.1 or emnist/letters'
    )
  logging.getLogger('absl').addFilter(_is_news)
  try:
    return tfds.builder(name, data_dir=expand(data_dir))
  except tfds.core.DatasetNotFoundError as error:
    known = tfds.list_builders(with_community_datasets=False)
    raise errors.UserError(
      f'config.data.name={name!r}: no such dataset{registry.hint(name, known)};'
      ' tfds.list_builders() lists them'
    ) from error
  except json_format.ParseError as error:
    folder = f'{data_dir or tfds.core.constants.DATA_DIR}/{name}'
    raise errors.UserError(
      f'a dataset_info.json in {folder} is damaged; delete that folder and '
      'prepare it again'
    ) from error
  except (AssertionError, ImportError, OSError, ValueError) as error:
    # The message of TFDS begins with a dict of arguments; the reason follows.
    reason = str(error).rpartition('}": ')[2].splitlines()[0]
    raise errors.UserError(f'config.data.name={name!r}: {reason}') from error


def _is_news(record: logging.LogRecord) -> bool:
  return not any(text in record.getMessage() for text in _NO_NEWS)


def expand(data_dir: str | None) -> str | None:
  """Expands `~` in the name of a folder.

  TFDS expands `~` only to read, and not to write.

  Args:
    data_dir: A folder; None or an empty string for the default of TFDS.

  Returns:
    The expanded folder. The result for an empty string is None, because TFDS
    takes an empty string for the current directory.
  """
  return os.path.expanduser(data_dir) if data_dir else None


def check_prepared(builder: Any, data_dir: str | None = None) -> None:
  """Checks that a dataset is prepared, complete and readable.

  Args:
    builder: The TFDS builder of the dataset.
    data_dir: The folder that the user gave, for the command in a message.

  Raises:
    UserError: If the dataset is absent or half written, or if the format of the
      files is not array_record.
  """
  folder = builder.data_path
  command = how_to_prepare(builder.name, data_dir) + _by_hand(builder)
  if not folder.exists():
    raise errors.UserError(
      f'{builder.name} {builder.version} is not prepared in {folder}'
      f'{_other_versions(folder)}; prepare it: {command}'
    )
  if not builder.is_prepared():
    raise errors.UserError(
      f'{folder} is half written; delete it and prepare it again: {command}'
    )
  found = builder.info.file_format.value
  if found != 'array_record':
    raise errors.UserError(
      f'{folder} is written as {found} and only array_record can be read; '
      f'delete it, or choose another data_dir, and prepare it: {command}'
    )


def check_features(
  name: str, features: Any, is_stream: bool = False, is_scaled: bool = False
) -> int:
  """Checks that a dataset has images and classes.

  Args:
    name: The name of the dataset, for messages.
    features: The features of the dataset in TFDS.
    is_stream: Whether a stream reads the images.
    is_scaled: Whether the images may differ in height and width, because a
      stream scales the images.

  Returns:
    The number of classes.

  Raises:
    UserError: If the dataset has no classes, or images that cannot be used.
  """
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
  fixed = image.shape[2:] if is_scaled else image.shape
  if image.np_dtype != np.uint8 or len(image.shape) != 3 or None in fixed:
    raise errors.UserError(
      f'{name} has images of shape {image.shape} and type {image.np_dtype}; '
      'only uint8 images (height, width, channels) can be used, of one shape'
      ' without config.data.stream.image_size'
    )
  # Pillow decodes the images of a stream, and all images that are files.
  is_decoded = is_stream or isinstance(image, tfds.features.Image)
  if is_decoded and image.shape[-1] not in MODES:
    raise errors.UserError(
      f'{name} has images of {image.shape[-1]} channels; only images of'
      f' {", ".join(map(str, MODES))} channels can be decoded'
    )
  return features['label'].num_classes


def split_info(builder: Any, split: str, where: str) -> Any:
  """Returns what TFDS knows of a split, which must exist and not be empty.

  Args:
    builder: The TFDS builder of the dataset.
    split: A split or a slice, for example `'train[:50000]'`.
    where: The place in the config, for messages.

  Raises:
    UserError: If the split does not exist or is empty.
  """
  try:
    info = builder.info.splits[split]
  except ValueError as error:
    reason = str(error).splitlines()[-1]
    raise errors.UserError(f'{where}: {reason}') from error
  if info.num_examples < 1:
    raise errors.UserError(f'{where}: the split of {builder.name} is empty')
  return info


def how_to_prepare(name: str, data_dir: str | None) -> str:
  """Returns the command line that prepares a dataset.

  Args:
    name: The name of the dataset.
    data_dir: The folder of the datasets; None for the default of TFDS.
  """
  if name in OWN:
    command = f'python -m bn_research.data {name}'
  else:
    command = f'tfds build {name} --file_format=array_record'
  return command + (f' --data_dir={shlex.quote(data_dir)}' if data_dir else '')


def _by_hand(builder: Any) -> str:
  """Returns what a user must download by hand, in one line, or empty text."""
  text = getattr(builder, 'MANUAL_DOWNLOAD_INSTRUCTIONS', None)
  if not text:
    return ''
  return f' --manual_dir=FOLDER, with files by hand: {" ".join(text.split())}'


def _other_versions(folder: Any) -> str:
  if not folder.parent.is_dir():
    return ''
  versions = sorted(
    path.name
    for path in folder.parent.iterdir()
    if re.fullmatch(r'\d+\.\d+\.\d+', path.name)
  )
  return f' (only {", ".join(versions)})' if versions else ''
