"""Loads whole datasets by name, as NumPy arrays."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bn_research import errors, registry
from bn_research.data import builders, cache, decoding, prepare


class Split(NamedTuple):
  """The images of a split, and the class of each image.

  Attributes:
    images: (num_examples, height, width, channels) uint8.
    labels: (num_examples,) int32, in [0, num_classes).
  """

  images: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The splits for the training and for the evaluation of a run.

  Attributes:
    name: The name of the dataset in the config.
    train: The training split.
    test: The test split.
    num_classes: The number of classes.
    version: The version of the dataset in TFDS; '' if the dataset has none.
    others: Further splits by name, for the evaluation.
  """

  name: str
  train: Split
  test: Split
  num_classes: int
  version: str = ''
  others: Mapping[str, Split] = dataclasses.field(default_factory=dict)

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Height, width and channels of an image."""
    return self.train.images.shape[1:]

  @property
  def num_examples(self) -> dict[str, int]:
    """The number of examples of each split."""
    splits = {'train': self.train, 'test': self.test, **self.others}
    return {name: len(split.labels) for name, split in splits.items()}

  def sample(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of training examples.

    Args:
      indices: The numbers of the examples, (count,).
    """
    return self.train.images[indices], self.train.labels[indices]

  def split(self, name: str) -> Split:
    """Returns a split by name.

    Args:
      name: `'train'`, `'test'`, or a name in `others`.

    Raises:
      UserError: If the dataset has no split of this name.
    """
    splits = {'train': self.train, 'test': self.test, **self.others}
    if name not in splits:
      raise errors.UserError(
        f'config.eval.splits names {name!r}; {self.name} has'
        f' {", ".join(splits)}'
      )
    return splits[name]


# Options of `augmentation.create` and of `normalizing.input_function`, which
# `load` ignores.
OF_INPUTS = ('binarize', 'normalize', 'augment')


def load(
  config: Mapping[str, Any],
  data_dir: str | None = None,
  splits: Sequence[str] = (),
) -> Dataset:
  """Loads a prepared image-classification dataset, without a download.

  The first use prepares a dataset that comes with an installed package.

  Args:
    config: The section `config.data`. The key `name` is `'digits'`, `'mnist'`
      or any name in TFDS. The keys `train` and `test` are optional, and hold
      splits or slices of splits, for example `'train[:50000]'` (see
      https://www.tensorflow.org/datasets/splits). For a name
      `module:attribute`, `load` calls this function of the user with the
      options of the section, and with `data_dir` if the function has this
      argument. The function returns a `Dataset`. `load` ignores the keys
      `augment`, `binarize` and `normalize`.
    data_dir: The folder of the datasets; None for the default of TFDS.
    splits: The splits that the caller needs: `'train'`, `'test'`, and further
      splits or slices in TFDS, for example `'validation'`. A function of the
      user does not get this argument, and returns all splits.

  Returns:
    The dataset. `others` has the further splits of the argument `splits`, or
    the further splits of a function of the user.

  Raises:
    UserError: If the dataset, an option or a split is unknown; if the dataset
      is not prepared, half written, damaged or empty; or if the dataset has no
      classes, or images that are not uint8 or differ in shape.
  """
  name, options = registry.split(config)
  options = {k: v for k, v in options.items() if k not in OF_INPUTS}
  if is_of_the_user(name):
    dataset = _of_the_user(name, options, data_dir)
    for split in splits:
      dataset.split(split)
    return dataset
  # `options` has no key of OF_INPUTS any more; a message lists all known keys.
  registry.check_keys('config.data', options, ('train', 'test', *OF_INPUTS))
  builder = prepare.ready(name, data_dir)
  num_classes = builders.check_features(name, builder.info.features)
  return Dataset(
    name=name,
    train=_read_option(builder, 'train', options),
    test=_read_option(builder, 'test', options),
    num_classes=num_classes,
    version=str(builder.version),
    others={
      split: _read(builder, split, f'config.eval.splits names {split!r}')
      for split in splits
      if split not in ('train', 'test')
    },
  )


def _of_the_user(
  name: str, options: Mapping[str, Any], data_dir: str | None
) -> Dataset:
  """Calls a function of the user, and checks the dataset of the function."""
  where = 'config.data'
  function = registry.find(where, {}, name)
  # The base of all configs has `train` and `test`, but a function of the user
  # need not have these two arguments.
  takes = registry.parameters_of(where, function, name)
  known = {k: v for k, v in options.items() if registry.takes(takes, k)}
  others = {k: v for k, v in options.items() if k not in ('train', 'test')}
  dataset = registry.call(
    where, function, name, {**others, **known}, data_dir=data_dir
  )
  if not isinstance(dataset, Dataset):
    raise errors.UserError(
      f'{where}: {name} returned a {type(dataset).__name__}; return a'
      ' bn_research.data.Dataset'
    )
  _check_fields(name, dataset)
  splits = {'train': dataset.train, 'test': dataset.test, **dataset.others}
  for key, split in splits.items():
    what = f'{name}: the split {key}'
    _check_split(what, split, dataset.num_classes)
    shapes = split.images.shape[1:], dataset.train.images.shape[1:]
    if shapes[0] != shapes[1]:
      raise errors.UserError(
        f'{what} has images of shape {shapes[0]}, and train has {shapes[1]};'
        ' give images of one shape'
      )
  return dataset


def _check_fields(name: str, dataset: Dataset) -> None:
  """Raises a UserError if a field, except the splits, has a wrong type."""
  count, others = dataset.num_classes, dataset.others
  # `type` instead of `isinstance`, because True is an int of Python.
  if type(count) is not int:
    raise errors.UserError(
      f'{name}: num_classes={count!r} is a {type(count).__name__}; give an int'
    )
  if not isinstance(others, Mapping):
    raise errors.UserError(
      f'{name}: others is a {type(others).__name__}; give a dict of'
      ' bn_research.data.Split by name'
    )
  for key in others:
    if not isinstance(key, str) or key in ('train', 'test'):
      raise errors.UserError(
        f'{name}: others has the name {key!r}; give a text other than train'
        ' and test'
      )


def _check_split(what: str, split: Split, num_classes: int) -> None:
  """Raises a UserError if shapes, types or labels do not fit a `Split`."""
  if not isinstance(split, Split):
    raise errors.UserError(
      f'{what} is a {type(split).__name__}; give a bn_research.data.Split'
    )
  images, labels = split
  for array in split:
    if not isinstance(array, np.ndarray):
      raise errors.UserError(
        f'{what} has a {type(array).__name__}; give arrays of NumPy'
      )
  if images.dtype != np.uint8 or images.ndim != 4:
    raise errors.UserError(
      f'{what} has images of shape {images.shape} and type {images.dtype};'
      ' give uint8 (N, height, width, channels)'
    )
  if labels.shape != (len(images),) or labels.dtype != np.int32:
    raise errors.UserError(
      f'{what} has labels of shape {labels.shape} and type {labels.dtype};'
      f' give int32 ({len(images)},)'
    )
  if not len(labels) or not (0 <= labels.min() <= labels.max() < num_classes):
    raise errors.UserError(
      f'{what} is empty, or has a label outside of 0 to {num_classes - 1}'
    )


def is_of_the_user(name: Any) -> bool:
  """Returns whether a name of a dataset has the form `module:attribute`."""
  pattern = r'[\w.]+:[A-Za-z_][\w.]*'
  return isinstance(name, str) and re.fullmatch(pattern, name) is not None


def _read_option(builder: Any, key: str, options: Mapping[str, Any]) -> Split:
  """Reads the split that an option of `config.data` names."""
  split = str(options.get(key, key))
  return _read(builder, split, f'config.data.{key}={split!r}')


def _read(builder: Any, split: str, where: str) -> Split:
  """Reads a split; `where` is the place in the config, for messages."""
  info = builders.split_info(builder, split, where)
  try:
    found = Split(*_arrays(builder, split, info.file_instructions))
  except (OSError, RuntimeError, ValueError) as error:
    raise errors.UserError(
      f'{builder.data_path} cannot be read: {str(error).splitlines()[0]}; if '
      'damaged, delete it and prepare it again'
    ) from error
  num_classes = builder.info.features['label'].num_classes
  _check_split(f'{where}: the split of {builder.name}', found, num_classes)
  return found


def _arrays(builder: Any, split: str, files: Sequence[Any]) -> cache.Arrays:
  """Returns the images and labels of a split, from the cache if possible."""
  import tensorflow_datasets as tfds

  # The cache saves the decoding of images. TFDS reads a dataset of plain arrays
  # as fast as the cache does.
  if not isinstance(builder.info.features['image'], tfds.features.Image):
    return decoding.decode(builder, split)
  return cache.fetch(
    f'{builder.name}-{builder.version}',
    files,
    lambda: decoding.decode(builder, split),
  )
