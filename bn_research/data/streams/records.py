"""The stored examples of a split, by number, through TFDS."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bn_research.data import builders, decoding
from bn_research.data.streams.decoding import Unreadable

_OTHER_FILES = 256


class Example(NamedTuple):
  """A stored example.

  Attributes:
    image: The bytes of an image file; or pixels, uint8 (height, width,
      channels), if the dataset has plain arrays.
    label: The class.
  """

  image: bytes | np.ndarray
  label: int


class Records:
  """The stored examples of a split; a copy can go to another process.

  Attributes:
    name: The dataset and the split, for messages.
    shards: The number of examples in each file.
  """

  def __init__(self, builder: Any, split: str, where: str):
    """Opens a split for random access.

    Args:
      builder: The TFDS builder of a dataset that is prepared as array_record.
      split: A split or a slice, for example `'train[:50000]'`.
      where: The place in the config, for messages.

    Raises:
      UserError: If the split does not exist or is empty.
    """
    import tensorflow_datasets as tfds

    files = builders.split_info(builder, split, where).file_instructions
    self.name = f'{builder.name} {split}'
    self.shards = tuple(file.take for file in files)
    self._num_classes = builder.info.features['label'].num_classes
    self._files = [str(file.filename) for file in files]
    # Plain arrays, which are no image files, need the code of TFDS.
    is_encoded = isinstance(builder.info.features['image'], tfds.features.Image)
    self._source = (
      decoding.raw_source(builder, split)
      if is_encoded
      else builder.as_data_source(split=split)
    )
    _allow_open_files(len(files) + _OTHER_FILES)

  def __len__(self) -> int:
    """Returns the number of examples."""
    return sum(self.shards)

  def read(self, indices: Sequence[int]) -> list[Example | Unreadable]:
    """Reads examples.

    Args:
      indices: Numbers of examples, in [0, len(self)).

    Returns:
      For each number an example, or an error with the reason.
    """
    try:
      # One call for all is twice as fast as a call for each.
      found = self._source.__getitems__(list(indices))
      return [self._checked(stored) for stored in found]
    except Exception:
      # TFDS does not tell which of the examples is damaged.
      return [self._read_one(index) for index in indices]

  def place(self, index: int) -> str:
    """Returns the number and the file of an example, for a message."""
    shard = int(np.searchsorted(np.cumsum(self.shards), index, side='right'))
    return f'{index} in {self._files[shard]}'

  def _read_one(self, index: int) -> Example | Unreadable:
    try:
      return self._checked(self._source[index])
    # Damaged bytes raise errors of many types in the libraries below.
    except Exception as error:
      return Unreadable(f'{type(error).__name__}: {error}'.splitlines()[0])

  def _checked(self, stored: Any) -> Example | Unreadable:
    if isinstance(stored, bytes):
      image, label = decoding.parse(stored)
    else:
      image, label = stored['image'], int(stored['label'])
    if not 0 <= label < self._num_classes:
      return Unreadable(f'the label is {label}, and no class')
    return Example(image, label)


def _allow_open_files(count: int) -> None:
  """Raises the limit of open files of the process, as far as the system lets.

  TFDS keeps each file of a dataset open, and ImageNet has a thousand files.
  """
  try:
    import resource
  except ImportError:  # Windows has no such limit.
    return
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if 0 <= soft < count:
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    with contextlib.suppress(OSError, ValueError):
      resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
