"""Describes a dataset from the metadata of TFDS, without the examples."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bn_research import errors, registry
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
  config: Mapping[str, Any], data_dir: str | None = None
) -> Description:
  """Describes the dataset of a config, which need not be prepared.

  A dataset of the user, `module:attribute`, has no metadata: the function of
  the user is called.

  Args:
    config: The section `config.data`.
    data_dir: The folder of the datasets; None for the default of TFDS.

  Raises:
    UserError: If the dataset is unknown, or has no classes or no images of one
      shape.
  """
  name, options = registry.split(config)
  if loading.is_of_the_user(name):
    dataset = loading.load(config, data_dir)
    images = dataset.train.images
    return Description(
      dataset.name, images.shape[1:], dataset.num_classes, len(images)
    )
  builder = builders.find(name, data_dir)
  features = builder.info.features
  size = None
  if options.get('stream') is not None:
    size = streams.options_of(config).image_size
  num_classes = builders.check_features(name, features, size is not None)
  shape = tuple(features['image'].shape)
  if size is not None:
    shape = (size, size, shape[-1])
  if None in shape:
    raise errors.UserError(
      f'{name} has images of several sizes; give config.data.stream.image_size'
    )
  count = None
  if builder.info.splits:
    split = str(options.get('train', 'train'))
    where = f'config.data.train={split!r}'
    count = builders.split_info(builder, split, where).num_examples
  return Description(name, shape, num_classes, count)
