"""A dataset whose images are read while a run trains."""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from bn_research import errors, registry
from bn_research.data import builders, loading, prepare
from bn_research.data.streams import prefetching
from bn_research.data.streams.batches import (
  Batch,
  Evaluation,
  Share,
  Training,
)
from bn_research.data.streams.options import Options
from bn_research.data.streams.records import Records

_WHERE = 'config.data.stream'
_PIECE = 16  # Examples of a sample that a thread reads at once.
_NAMED = 5  # Examples that a message names.


class Stream:
  """A dataset that does not fit the memory.

  Attributes:
    name: The name of the dataset in the config.
    version: The version of the dataset in TFDS.
    num_classes: The number of classes.
    input_shape: Height, width and channels of an image in a batch.
    evaluation_shape: The shape of `input_shape`, behind the number of windows
      if an evaluation takes several windows of an image.
    num_examples: The number of examples of each split.
    unreadable: The number and the reason of each unreadable example so far, for
      each split.
  """

  def __init__(
    self,
    name: str,
    builder: Any,
    splits: Mapping[str, tuple[str, str]],
    options: Options,
    share: Share,
  ):
    """Opens the splits of a prepared dataset.

    Args:
      name: The name of the dataset in the config.
      builder: The TFDS builder of the dataset.
      splits: For each name of a split, the split in TFDS and the place in the
        config.
      options: The options of the stream.
      share: The part of each batch that this process reads.

    Raises:
      UserError: If a split does not exist or is empty.
    """
    features = builder.info.features
    self.name = name
    self.version = str(builder.version)
    self.num_classes = builders.check_features(
      name,
      features,
      is_stream=True,
      is_scaled=options.image_size is not None,
    )
    *sides, channels = features['image'].shape
    if options.image_size is not None:
      sides = [options.image_size] * 2
    self.input_shape = (*sides, channels)
    self.evaluation_shape = self.input_shape
    if options.crops > 1:
      self.evaluation_shape = (options.crops, *self.input_shape)
    self._options, self._share = options, share
    self._records = {
      key: Records(builder, split, where)
      for key, (split, where) in splits.items()
    }
    self.num_examples = {k: len(r) for k, r in self._records.items()}
    self.unreadable: dict[str, dict[int, str]] = {k: {} for k in splits}

  def batches(
    self, batch_size: int, seed: int, start: int, stop: int
  ) -> Generator[Batch, None, None]:
    """Yields the training batches of the steps `start` to `stop` - 1.

    The batch of a step is a function of the seed and of the step. The order of
    the examples is the order of `data.batch_indices`, unless the option
    `shuffle` follows the files.

    Args:
      batch_size: The number of examples in a batch, over all processes.
      seed: The seed of the order, the windows and the colours.
      start: The first step.
      stop: The last step plus 1.

    Returns:
      An iterator over batches, of which this process reads a share. `close()`
      ends the reading.

    Raises:
      UserError: If the batch does not fit the dataset or the processes, or if
        more examples are unreadable than the option `max_corrupt` allows.
    """
    training = Training(
      self._records['train'],
      self.input_shape,
      self._options,
      batch_size,
      seed,
      self._share,
    )
    training.indices(start)  # Raises a UserError for a size that does not fit.
    options = self._options
    return self._counted(
      'train',
      prefetching.prefetch(
        training, start, stop, options.threads, options.workers
      ),
    )

  def evaluation(
    self, split: str, indices: np.ndarray
  ) -> Generator[Batch, None, None]:
    """Yields batches of a split without random changes.

    Args:
      split: A name in `num_examples`.
      indices: The examples of each batch, int32 (num_batches, batch), over all
        processes; -1 for a place without an example.

    Returns:
      An iterator over batches, of which this process reads a share. An
      unreadable example has the label -1.

    Raises:
      UserError: If the processes cannot share a batch, or if more examples are
        unreadable than the option `max_corrupt` allows.
    """
    options = self._options
    crops = None if options.image_size is None else options.crops
    load = Evaluation(
      self._records[split],
      self.input_shape,
      indices,
      crops,
      share=self._share,
    )
    self._share.of(indices.T)  # Raises a UserError for a wrong size.
    # New processes would take longer to start than most evaluations take.
    found = prefetching.prefetch(load, 0, len(indices), options.threads)
    return self._counted(split, found)

  def records(self, split: str) -> Records:
    """Returns the stored examples of a split, a name in `num_examples`."""
    return self._records[split]

  def sample(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns training examples without random changes.

    Args:
      indices: The numbers of the examples, int32 (count,).

    Returns:
      Images, uint8 (count, height, width, channels), and labels, int32
      (count,). The next readable example replaces an unreadable example. With
      the option `image_size`, the images are windows of the centre.

    Raises:
      UserError: If more examples are unreadable than the option `max_corrupt`
        allows.
    """
    options = self._options
    crops = None if options.image_size is None else 1
    # Pieces let all threads work.
    pieces = np.full((-(-len(indices) // _PIECE), _PIECE), -1, np.int32)
    pieces.flat[: len(indices)] = indices
    load = Evaluation(
      self._records['train'],
      self.input_shape,
      pieces,
      crops,
      options.max_corrupt,
    )
    found = prefetching.prefetch(load, 0, len(pieces), options.threads)
    batches = list(self._counted('train', found))
    images = np.concatenate([batch.images for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    return images[: len(indices)], labels[: len(indices)]

  def _counted(
    self, split: str, batches: Generator[Batch, None, None]
  ) -> Generator[Batch, None, None]:
    """Yields batches, and counts the examples that are unreadable."""
    records, known = self._records[split], self.unreadable[split]
    # A split without a readable example is never allowed.
    most = min(self._options.max_corrupt, len(records) - 1)
    with contextlib.closing(batches):
      for batch in batches:
        for index, reason in batch.unreadable:
          if index not in known:
            known[index] = reason
            if len(known) > most:
              raise errors.UserError(self._told(records, known))
            logging.warning(
              'An example of %s is unreadable: %s (%s)',
              *(records.name, records.place(index), reason),
            )
        yield batch

  def _told(self, records: Records, known: Mapping[int, str]) -> str:
    """Returns the line about too many unreadable examples."""
    first, reason = next(iter(known.items()))
    numbers = ', '.join(map(str, list(known)[:_NAMED]))
    more = ', ...' if len(known) > _NAMED else ''
    return (
      f'{records.name} has {len(known)} unreadable examples ({numbers}{more}),'
      f' and {_WHERE}.max_corrupt={self._options.max_corrupt}; the first is'
      f' {records.place(first)}: {reason}; prepare the dataset again'
    )


def options_of(config: Mapping[str, Any]) -> Options:
  """Returns the options of the stream of `config.data`.

  Args:
    config: The section `config.data`, with a section `stream`.

  Raises:
    UserError: If a key or an option is unknown, or if a value is out of range.
  """
  _, given = registry.split(config)
  known = ('train', 'test', 'stream', *loading.OF_INPUTS)
  registry.check_keys('config.data', given, known)
  section = given.get('stream')
  if not registry.is_section(section):
    raise errors.UserError(
      f'{_WHERE}={section!r} is no section; give an option, such as'
      f' {_WHERE}.shuffle=examples'
    )
  _, options = registry.split(section)
  return registry.call(_WHERE, Options, 'stream', options)


def open_stream(
  config: Mapping[str, Any],
  data_dir: str | None = None,
  splits: Sequence[str] = (),
  share: Share | None = None,
) -> Stream:
  """Opens a prepared dataset as a stream.

  Args:
    config: The section `config.data`, with a section `stream` of options.
    data_dir: The folder of the datasets; None for the default of TFDS.
    splits: Further splits or slices in TFDS besides `'train'` and `'test'`.
    share: The part of each batch that this process reads; None for a part for
      each process of JAX.

  Returns:
    The stream.

  Raises:
    UserError: If the dataset, a split or an option is unknown or does not fit,
      or if the dataset is not prepared.
  """
  name, given = registry.split(config)
  made = options_of(config)
  if share is None:
    share = Share(jax.process_index(), jax.process_count())
  builder = prepare.ready(name, data_dir)
  named = {
    key: (str(given.get(key, key)), f'config.data.{key}')
    for key in ('train', 'test')
  }
  for split in splits:
    named.setdefault(split, (split, f'config.eval.splits names {split!r}'))
  return Stream(name, builder, named, made, share)
