"""MNIST and Fashion-MNIST as TFDS writes them, without TensorFlow.

The official builders call TensorFlow to unpack the files and to encode arrays
as PNG. Python unpacks them as well, and TFDS encodes PIL images by itself; the
rest, checksums included, stays the official builders' own.
"""

import gzip
import http.client
import pathlib
import shutil
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.image_classification import mnist

from bn_research import errors

FILES = {
  'train': ('train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz'),
  'test': ('t10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz'),
}
_FILE_NAMES = tuple(name for names in FILES.values() for name in names)
_TIMEOUT = 20  # seconds without an answer
_IMAGE_HEADER, _LABEL_HEADER = 16, 8  # bytes


def download(url: str, folder: pathlib.Path) -> None:
  """Fetches the four files; TFDS itself retries for minutes without a network.

  Args:
    url: Where the files are, ending in `/`.
    folder: Where they go.

  Raises:
    UserError: If one does not come.
  """
  for name in _FILE_NAMES:
    try:
      with (
        urllib.request.urlopen(url + name, timeout=_TIMEOUT) as response,
        (folder / name).open('wb') as file,
      ):
        shutil.copyfileobj(response, file)
    except (OSError, http.client.HTTPException) as error:
      raise errors.UserError(
        f'cannot download {url}{name}: {error}; fetch the four files by '
        'other means and give their folder as --from=FOLDER'
      ) from error


def check_complete(folder: pathlib.Path) -> None:
  """Raises a UserError where one of the four files is missing in `folder`."""
  missing = [name for name in _FILE_NAMES if not (folder / name).is_file()]
  if missing:
    raise errors.UserError(f'no {", ".join(missing)} in {folder}')


class _WithoutTensorFlow:
  """Replaces the two methods of the official builder that need TensorFlow."""

  URL: str

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    paths = dl_manager.download({name: self.URL + name for name in _FILE_NAMES})
    return {
      split: self._generate_examples(*(paths[name] for name in names))
      for split, names in FILES.items()
    }

  def _generate_examples(
    self, images_path: pathlib.Path, labels_path: pathlib.Path
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    images = _read_idx(images_path, _IMAGE_HEADER).reshape(-1, 28, 28)
    labels = _read_idx(labels_path, _LABEL_HEADER)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {'image': Image.fromarray(image), 'label': int(label)}


def _read_idx(path: pathlib.Path, header: int) -> np.ndarray:
  with gzip.open(path) as file:
    return np.frombuffer(file.read(), np.uint8, offset=header)


# The names are taken: these write for the official builders, which then read.
with registered.skip_registration():

  class Mnist(_WithoutTensorFlow, mnist.MNIST):
    """Writes what `tensorflow_datasets.image_classification.MNIST` writes."""

    name = 'mnist'
    url_infos = mnist.MNIST.url_infos

  class FashionMnist(_WithoutTensorFlow, mnist.FashionMNIST):
    """Writes what TFDS's official `FashionMNIST` writes."""

    name = 'fashion_mnist'
    url_infos = mnist.FashionMNIST.url_infos
