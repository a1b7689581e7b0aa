"""Describes a dataset from the metadata of TFDS, without the examples."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bn_research import registry
from bn_research.data import builders, loading, streams


class Description(NamedTuple):
  """The facts of a dataset that a network depends on.

  Attributes:
    name: The name of the dataset.
    shape: The shape of an example, (height, width, channels).
    num_classes: The number of classes.
    num_examples: The number of training examples; None if the dataset is not
      prepared, because TFDS counts the examples while it writes.
  """

  name: str
  shape: tuple[int, ...]
  num_classes: int
  num_examples: int | None


def describe(
  config: Mapping[str, Any],
  data_dir: str | None = None,
  splits: Sequence[str] = (),
) -> Description:
  """Describes the dataset of a config, which need not be prepared.

  A dataset of the user, `module:attribute`, has no metadata: the function of
  the user is called.

  Args:
    config: The section `config.data`.
    data_dir: The folder of the datasets; None for the default of TFDS.
    splits: The names of `config.eval.splits`.

  Raises:
    UserError: If the dataset is unknown, or has no classes or no images of one
      shape, or if a prepared dataset lacks a split.
  """
  name, options = registry.split(config)
  if loading.is_of_the_user(name):
    dataset = loading.load(config, data_dir)
    for split in splits:
      dataset.split(split)
    images = dataset.train.images
    return Description(
      dataset.name, images.shape[1:], dataset.num_classes, len(images)
    )
  builder = builders.find(name, data_dir)
  features = builder.info.features
  size = None
  is_stream = options.get('stream') is not None
  if is_stream:
    size = streams.options_of(config).image_size
  num_classes = builders.check_features(
    name, features, is_stream, is_scaled=size is not None
  )
  shape = tuple(features['image'].shape)
  if size is not None:
    shape = (size, size, shape[-1])
  count = None
  if builder.info.splits:
    count, *_ = (
      builders.split_info(builder, split, where).num_examples
      for where, split in _places(options, splits)
    )
  return Description(name, shape, num_classes, count)


def _places(
  options: Mapping[str, Any], splits: Sequence[str]
) -> Iterator[tuple[str, str]]:
  """Yields the place in the config of each split in TFDS, and the split."""
  for key in ('train', 'test'):
    split = str(options.get(key, key))
    yield f'config.data.{key}={split!r}', split
  for split in splits:
    if split not in ('train', 'test'):
      yield f'config.eval.splits names {split!r}', split
