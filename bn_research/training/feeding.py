"""The data of a run on the devices, for the training and the measurements."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bn_research import data, errors
from bn_research.training import configuration, evaluated, evaluation
from bn_research.training import mesh as mesh_lib
from bn_research.training.compiling import Compiler
from bn_research.training.step import Examples

# A key for the augmentation, far from the keys of the initial parameters:
# `nnx.Rngs` folds the numbers 0, 1, 2, ... into the key of the seed.
_AUGMENTATION = 2**32 - 1


Dataset = data.Dataset | data.Stream
Put = Callable[[Any], Any]


def open_dataset(
  section: Mapping[str, Any],
  data_dir: str | None = None,
  splits: Sequence[str] = (),
) -> Dataset:
  """Loads a dataset, or opens a stream if the config has options of a stream.

  Args:
    section: The section `config.data`.
    data_dir: The folder of the datasets; None for the default of TFDS.
    splits: The splits that the caller needs besides `'train'` and `'test'`.

  Raises:
    UserError: If the dataset cannot be used.
  """
  if section.get('stream') is None:
    return data.load(section, data_dir, splits)
  return data.open_stream(section, data_dir, splits)


def augmentation_key(seed: int) -> jax.Array:
  """Returns the key of the augmentation of a run."""
  return jax.random.fold_in(jax.random.key(seed), _AUGMENTATION)


def probe_examples(
  config: Mapping[str, Any], dataset: Dataset, put: Put
) -> dict[str, Examples]:
  """Returns the examples of each probe, at equal distances in the training set.

  Args:
    config: The resolved config.
    dataset: The dataset.
    put: A function that copies arrays to the devices.

  Raises:
    UserError: If a probe asks for more examples than there are.
  """
  found = {}
  length = dataset.num_examples['train']
  for key, section in configuration.probe_sections(config).items():
    count = section['num_examples']
    if count > length:
      raise errors.UserError(
        f'config.probes.{key}.num_examples={count}, but there are {length}'
        ' training examples'
      )
    found[key] = Examples(*put(dataset.sample(spaced(length, count))))
  return found


def spaced(length: int, count: int) -> np.ndarray:
  """Returns `count` indices at equal distances, or all if there are fewer.

  Equal distances cover all classes of a split that is sorted by class.
  """
  count = min(count, length)
  return np.arange(count) * length // count


class Memory:
  """A dataset that fits the memory, with a copy on each device.

  Attributes:
    images: All training images, on the host.
    train: The training examples, with the key of the augmentation.
    splits: For each split of `config.eval.splits`, the examples and the batches
      of `evaluation.batches`.
    stacks: The result of `evaluated.stacks`, or nothing if the running moments
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
    self.images = dataset.train.images
    self._num_examples = len(self.images)
    self._indices(0, 1)  # Raises a UserError for a batch that does not fit.
    self._put = functools.partial(mesh_lib.replicate, mesh=mesh)
    self.key = self._put(jax.random.key(self._seed))
    augmentation = augmentation_key(self._seed)
    self.train = Examples(*self._put((*dataset.train, augmentation)))
    self.probes = probe_examples(config, dataset, self._put)
    self.splits = {
      name: self._split(dataset, name, mesh.size)
      for name in config['eval']['splits']
    }
    self.stacks: list[jax.Array] = []
    if config['eval']['population'] == 'reestimated':
      self.stacks = self._put(
        evaluated.stacks(self._num_examples, mesh.size, _numbers(dataset.train))
      )

  def with_seed(self, seed: int) -> 'Memory':
    """Returns the same data with the keys and the order of another seed."""
    other = copy.copy(self)
    other._seed = seed
    other.key = self._put(jax.random.key(seed))
    other.train = self.train._replace(key=self._put(augmentation_key(seed)))
    return other

  def sample(self, count: int) -> np.ndarray:
    """Returns at most `count` training images on the host, equally spaced."""
    return self.images[spaced(self._num_examples, count)]

  def rows(self, start: int, stop: int, length: int) -> np.ndarray:
    """Returns the indices of the examples of steps, for a loop on the devices.

    Args:
      start: The first step.
      stop: The step after the last step.
      length: The number of rows, at least `stop - start`.

    Returns:
      int32 (length, batch). The rows after the last step are of no meaning.
    """
    # The program has fixed shapes, and does not read the rows after the last
    # step.
    padded = np.zeros((length, self._size), np.int32)
    padded[: stop - start] = self._indices(start, stop)
    return padded

  def abstract(self, compiler: Compiler) -> tuple[Any, ...]:
    """Returns the arguments of a step after the state, as shapes."""
    return self.train, compiler.int32(self._size)

  def steps(self, start: int, stop: int) -> Iterator[tuple[Any, ...]]:
    """Yields the arguments of the steps from `start` to `stop` - 1."""
    for row in self._indices(start, stop):
      yield self.train, row

  def close(self) -> None:
    """Does nothing, because the data are in memory."""

  def _indices(self, start: int, stop: int) -> np.ndarray:
    return data.batch_indices(
      self._num_examples, self._size, self._seed, start, stop
    )

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
