"""The data of a run on the devices, for the training and the measurements."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bn_research import data, errors
from bn_research.training import configuration, evaluation
from bn_research.training import mesh as mesh_lib
from bn_research.training.step import Examples

# A key for the augmentation, far from the keys of the initial parameters:
# `nnx.Rngs` folds the numbers 0, 1, 2, ... into the key of the seed.
_AUGMENTATION = 2**32 - 1


class Memory:
  """A dataset that fits the memory, with a copy on each device.

  Attributes:
    train: The training examples, with the key of the augmentation.
    splits: For each split of `config.eval.splits`, the examples and the batches
      of `evaluation.batches`.
    stacks: The result of `evaluation.stacks`, or nothing if the running moments
      are evaluated.
    probes: The examples of each probe, by key of `config.probes`.
    key: The key of the initial parameters.
  """

  def __init__(
    self, config: Mapping[str, Any], dataset: data.Dataset, mesh: Mesh
  ):
    """Copies the data to the devices.

    Args:
      config: The resolved config.
      dataset: The dataset for training and evaluation.
      mesh: The device mesh.

    Raises:
      UserError: If a batch, a split or a probe does not fit the dataset.
    """
    self._size, self._seed = config['batch_size'], config['seed']
    self._images = dataset.train.images
    self._num_examples = len(self._images)
    self.indices(0, 1)  # Raises a UserError for a batch that does not fit.
    self._put = functools.partial(mesh_lib.replicate, mesh=mesh)
    self.key = self._put(jax.random.key(self._seed))
    augmentation = jax.random.fold_in(self.key, _AUGMENTATION)
    self.train = Examples(*self._put((*dataset.train, augmentation)))
    self.probes = {
      key: Examples(
        *self._put(_spread(key, dataset.train, section['num_examples']))
      )
      for key, section in configuration.probe_sections(config).items()
    }
    self.splits = {
      name: self._split(dataset, name, mesh.size)
      for name in config['eval']['splits']
    }
    self.stacks: list[jax.Array] = []
    if config['eval']['population'] == 'reestimated':
      self.stacks = self._put(
        evaluation.stacks(
          self._num_examples, mesh.size, _numbers(dataset.train)
        )
      )

  def indices(self, start: int, stop: int) -> np.ndarray:
    """Returns indices of the examples of the steps `start` to `stop` - 1."""
    return data.batch_indices(
      self._num_examples, self._size, self._seed, start, stop
    )

  def sample(self, count: int) -> np.ndarray:
    """Returns at most `count` training images, at equal distances, on the host.

    Equal distances cover all classes of a split that is sorted by class.
    """
    return self._images[_spaced(self._num_examples, count)]

  def _split(
    self, dataset: data.Dataset, name: str, num_devices: int
  ) -> tuple[Examples, jax.Array]:
    """Returns the examples and the batches of a split, on the devices."""
    split = dataset.split(name)
    batches = self._put(
      evaluation.batches(len(split.images), num_devices, _numbers(split))
    )
    if name == 'train':
      return self.train, batches
    return Examples(*self._put(tuple(split))), batches


def _numbers(split: data.Split) -> int:
  """Returns the numbers of input in an example."""
  return math.prod(split.images.shape[1:])


def _spread(key: str, split: data.Split, count: int) -> tuple[np.ndarray, ...]:
  """Returns the examples of a probe, at equal distances in a split."""
  if count > len(split.images):
    raise errors.UserError(
      f'config.probes.{key}.num_examples={count}, but there are'
      f' {len(split.images)} training examples'
    )
  chosen = _spaced(len(split.images), count)
  return split.images[chosen], split.labels[chosen]


def _spaced(length: int, count: int) -> np.ndarray:
  """Returns `count` indices at equal distances, or all if there are fewer."""
  count = min(count, length)
  return np.arange(count) * length // count
