"""The data of a run whose images are read while the run trains."""

import functools
import math
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bn_research import data
from bn_research.data.streams import Batch
from bn_research.training import evaluated, evaluation, feeding
from bn_research.training import mesh as mesh_lib
from bn_research.training.compiling import Compiler
from bn_research.training.step import Examples

# The sample of a stream that is kept in memory, in bytes: 891 images of 224 x
# 224 pixels in colour, or 43,690 of 32 x 32.
_SAMPLE = 2**27


class Streamed:
  """A stream, of which each device gets a part of each batch.

  Attributes:
    train: A sample of the training examples, for a re-estimation; None if the
      running moments are evaluated.
    stacks: The result of `evaluated.stacks` for the sample, or nothing.
    probes: The examples of each probe, by key of `config.probes`.
    key: The key of the initial parameters.
  """

  def __init__(
    self, config: Mapping[str, Any], stream: data.Stream, mesh: Mesh
  ):
    """Reads the examples of the probes.

    Args:
      config: The resolved config.
      stream: The dataset for training and evaluation.
      mesh: The device mesh.

    Raises:
      UserError: If a batch or a probe does not fit the dataset, or if too many
        examples are unreadable.
    """
    self._config, self._stream, self._mesh = config, stream, mesh
    self._put = functools.partial(mesh_lib.replicate, mesh=mesh)
    self._shared = NamedSharding(mesh, PartitionSpec('data'))
    # Raises a UserError for a batch that does not fit.
    self._batches = self._open(0)
    self._next = 0
    self.key = self._put(jax.random.key(config['seed']))
    self._augmentation = self._put(feeding.augmentation_key(config['seed']))
    self.probes = feeding.probe_examples(config, stream, self._put)
    self.train: Examples | None = None
    self.stacks: list[jax.Array] = []
    if config['eval']['population'] == 'reestimated':
      images, labels = self._sample(self._most)
      self.train = Examples(*self._put((images, labels)))
      self.stacks = self._put(
        evaluated.stacks(len(labels), mesh.size, math.prod(stream.input_shape))
      )

  @property
  def images(self) -> np.ndarray:
    """Training images, to fit a function of inputs; as many as are needed."""
    section = self._config['data']
    is_fitted = section.get('normalize') or section.get('augment')
    return self.sample(self._most if is_fitted else 1)

  def sample(self, count: int) -> np.ndarray:
    """Returns at most `count` training images on the host, equally spaced."""
    return self._sample(count)[0]

  def abstract(self, compiler: Compiler) -> tuple[Any, ...]:
    """Returns the arguments of a step after the state, as shapes."""
    shape = (self._config['batch_size'], *self._stream.input_shape)
    return (self._abstract(compiler, shape, self._augmentation),)

  def steps(self, start: int, stop: int) -> Iterator[tuple[Any, ...]]:
    """Yields the arguments of the steps from `start` to `stop` - 1."""
    for step in range(start, stop):
      yield (self._at(step),)

  def abstract_evaluation(self, compiler: Compiler, split: str) -> Examples:
    """Returns a batch of the evaluation of a split, as shapes."""
    shape = (self._indices(split).shape[1], *self._stream.evaluation_shape)
    return self._abstract(compiler, shape, None)

  def evaluation(self, split: str) -> Iterator[Examples]:
    """Yields the batches of a split on the devices; the label -1 is padding."""
    indices = self._indices(split)
    for batch in self._stream.evaluation(split, indices):
      yield self._on_devices(batch, indices.shape[1], None)

  def close(self) -> None:
    """Ends the reading of batches."""
    self._batches.close()

  @property
  def _most(self) -> int:
    return max(1, _SAMPLE // math.prod(self._stream.input_shape))

  def _sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
    length = self._stream.num_examples['train']
    return self._stream.sample(feeding.spaced(length, count))

  def _at(self, step: int) -> Examples:
    """Returns the batch of a step; the step after the last one is ready."""
    if step != self._next:
      self._batches.close()
      self._batches = self._open(step)
    self._next = step + 1
    batch, size = next(self._batches), self._config['batch_size']
    return self._on_devices(batch, size, self._augmentation)

  def _open(self, step: int) -> Generator[Batch, None, None]:
    """Returns the batches from a step on."""
    config = self._config
    return self._stream.batches(
      config['batch_size'], config['seed'], step, config['num_steps']
    )

  def _indices(self, split: str) -> np.ndarray:
    numbers = math.prod(self._stream.evaluation_shape)
    crops = numbers // math.prod(self._stream.input_shape)
    return evaluation.batches(
      self._stream.num_examples[split], self._mesh.size, numbers, crops
    )

  def _abstract(
    self, compiler: Compiler, shape: tuple[int, ...], key: Any
  ) -> Examples:
    like = functools.partial(jax.ShapeDtypeStruct, sharding=self._shared)
    return Examples(
      like(shape, np.uint8),
      like(shape[:1], np.int32),
      None if key is None else compiler.like(jax.typeof(key)),
    )

  def _on_devices(self, batch: Batch, size: int, key: Any) -> Examples:
    # The shares of all processes, in turn, are the batch.
    put = functools.partial(
      jax.make_array_from_process_local_data, self._shared
    )
    images, labels = batch.images, batch.labels
    return Examples(
      put(images, (size, *images.shape[1:])), put(labels, (size,)), key
    )
