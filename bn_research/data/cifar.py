"""Writes CIFAR-10 and CIFAR-100 in the format of TFDS, without TensorFlow.

The official builders call TensorFlow to unpack the archive, and to encode
arrays as PNG. The builders of this module read the archive with Python, and
give TFDS images of PIL. The archive has two forms with the same examples in the
same order: the binary form, which the official builders read, and the form of
pickles for Python.
"""

import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.utils import Size
from tensorflow_datasets.image_classification import cifar

from bn_research import errors
from bn_research.data import originals, unpickling

_URL = 'https://www.cs.toronto.edu/~kriz/'
_SHAPE = (3, 32, 32)  # planes of red, green and blue
_PIXELS = 3 * 32 * 32
# Errors of the archive, of the compression, and of the values in a pickle.
_DAMAGE = (
  *(EOFError, OSError, tarfile.TarError, zlib.error),
  *(AttributeError, TypeError, ValueError),
)


class Rows(NamedTuple):
  """The examples of a file in an archive.

  Attributes:
    labels: (num_examples, num_labels), a column for each kind of label.
    pixels: (num_examples, 3072) uint8: red, green and blue planes.
  """

  labels: np.ndarray
  pixels: np.ndarray


class _Pickled(NamedTuple):
  """Names in the form of pickles, in the order of the official label keys.

  Attributes:
    folder: The folder in the archive.
    meta: The file with the names of the classes.
    names: The keys of the names of the classes.
    labels: The keys of the labels.
  """

  folder: str
  meta: str
  names: tuple[bytes, ...]
  labels: tuple[bytes, ...]


class _WithoutTensorFlow(originals.FromFiles):
  """Replaces the methods of the official builder that need TensorFlow."""

  URL = _URL
  PICKLED: _Pickled
  info: Any
  _cifar_info: cifar.CifarInfo

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    (path,) = self.paths(dl_manager).values()
    read = self._binary if path.name == self.FORMS[0][0] else self._pickled
    try:
      names, splits = read(_contents(path))
      for key, classes in zip(self._cifar_info.label_keys, names, strict=True):
        self.info.features[key].names = classes
      for rows in splits.values():
        self._check(rows)
    except _DAMAGE as error:
      reason = str(error).partition('\n')[0]
      raise errors.UserError(
        f'{path} is damaged: {reason}; fetch that file again'
      ) from error
    return {
      split: self._generate_examples(f'{split}_', rows)
      for split, rows in splits.items()
    }

  def _binary(
    self, contents: Mapping[str, bytes]
  ) -> tuple[list[list[str]], dict[str, Rows]]:
    """Returns the names of the classes and the examples, in binary form."""
    info = self._cifar_info
    num_labels = len(info.label_keys)

    def rows(name: str) -> Rows:
      numbers = np.frombuffer(_member(contents, info.prefix + name), np.uint8)
      table = numbers.reshape(-1, num_labels + _PIXELS)
      return Rows(table[:, :num_labels], table[:, num_labels:])

    names = [
      _member(contents, info.prefix + file).decode().split('\n')
      for file in info.label_files
    ]
    return [[n for n in some if n] for some in names], self._splits(rows)

  def _pickled(
    self, contents: Mapping[str, bytes]
  ) -> tuple[list[list[str]], dict[str, Rows]]:
    """Returns the names of the classes and the examples, from pickles."""
    form = self.PICKLED

    def load(name: str, *keys: bytes) -> list[Any]:
      member = f'{form.folder}/{name}'
      found = unpickling.loads(_member(contents, member))
      if missing := [key.decode() for key in keys if key not in found]:
        raise ValueError(f'{member} has no {", ".join(missing)}')
      return [found[key] for key in keys]

    def rows(name: str) -> Rows:
      pixels, *labels = load(name.removesuffix('.bin'), b'data', *form.labels)
      return Rows(np.array(labels).T, pixels)

    names = [
      [name.decode() for name in some] for some in load(form.meta, *form.names)
    ]
    return names, self._splits(rows)

  def _splits(self, rows: Callable[[str], Rows]) -> dict[str, Rows]:
    """Joins the files of each split."""
    info = self._cifar_info
    return {
      split: Rows(*map(np.concatenate, zip(*map(rows, files), strict=True)))
      for split, files in (
        ('train', info.train_files),
        ('test', info.test_files),
      )
    }

  def _check(self, rows: Rows) -> None:
    """Raises a ValueError if the arrays do not fit the dataset."""
    labels, pixels = rows
    keys = self._cifar_info.label_keys
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
      raise ValueError(f'{len(labels)} labels, but pixels {pixels.shape}')
    if labels.dtype.kind not in 'iu' or labels.shape[1:] != (len(keys),):
      raise ValueError(f'labels of type {labels.dtype} {labels.shape}')
    for column, key in zip(labels.T, keys, strict=True):
      count = self.info.features[key].num_classes
      if column.min() < 0 or column.max() >= count:
        raise ValueError(f'a {key} is outside of 0 to {count - 1}')

  def _generate_examples(
    self, prefix: str, rows: Rows
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    keys = self._cifar_info.label_keys
    for i, (labels, pixels) in enumerate(zip(*rows, strict=True)):
      image = np.ascontiguousarray(pixels.reshape(_SHAPE).transpose(1, 2, 0))
      yield (
        i,
        {
          'id': f'{prefix}{i:05d}',
          'image': Image.fromarray(image),
          **dict(zip(keys, map(int, labels), strict=True)),
        },
      )


def _contents(path: pathlib.Path) -> dict[str, bytes]:
  """Returns the files in an archive by name; nothing is written to the disk."""
  contents = {}
  with tarfile.open(path, 'r:gz') as archive:
    # A compressed archive is fast to read in its own order only.
    for member in archive:
      file = archive.extractfile(member) if member.isfile() else None
      if file is not None:
        contents[member.name] = file.read()
  return contents


def _member(contents: Mapping[str, bytes], name: str) -> bytes:
  if name not in contents:
    raise ValueError(f'there is no {name} in it')
  return contents[name]


def _url_infos(official: Any, file: str, size: int, checksum: str) -> Any:
  """Returns the official checksums, and the checksum of a further file."""
  info = checksums.UrlInfo(size=Size(size), checksum=checksum, filename=file)
  return {**official.url_infos, _URL + file: info}


# The official builders are registered under the same names. The classes below
# only write the datasets, and the official builders read the datasets.
with registered.skip_registration():

  class Cifar10(_WithoutTensorFlow, cifar.Cifar10):
    """Writes the files of `tensorflow_datasets.image_classification.Cifar10`.

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images,
    2009.
    """

    name = 'cifar10'
    FORMS = (('cifar-10-binary.tar.gz',), ('cifar-10-python.tar.gz',))
    PICKLED = _Pickled(
      'cifar-10-batches-py', 'batches.meta', (b'label_names',), (b'labels',)
    )
    url_infos = _url_infos(
      cifar.Cifar10,
      'cifar-10-python.tar.gz',
      170_498_071,
      '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce',
    )

  class Cifar100(_WithoutTensorFlow, cifar.Cifar100):
    """Writes the files of the official `Cifar100` of TFDS.

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images,
    2009.
    """

    name = 'cifar100'
    FORMS = (('cifar-100-binary.tar.gz',), ('cifar-100-python.tar.gz',))
    PICKLED = _Pickled(
      'cifar-100-python',
      'meta',
      (b'coarse_label_names', b'fine_label_names'),
      (b'coarse_labels', b'fine_labels'),
    )
    url_infos = _url_infos(
      cifar.Cifar100,
      'cifar-100-python.tar.gz',
      169_001_437,
      '85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7',
    )
