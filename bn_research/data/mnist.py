"""Writes MNIST and Fashion-MNIST in the format of TFDS, without TensorFlow.

The official builders call TensorFlow to unpack the files, and to encode arrays
as PNG. The builders of this module unpack the files with Python, and give TFDS
images of PIL, which TFDS encodes without TensorFlow. All further parts are the
parts of the official builders, for example the checksums.
"""

import gzip
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.image_classification import mnist

from bn_research.data import originals

FILES = {
  'train': ('train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz'),
  'test': ('t10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz'),
}
_IMAGE_HEADER, _LABEL_HEADER = 16, 8  # bytes


class _WithoutTensorFlow(originals.FromFiles):
  """Replaces the two methods of the official builder that need TensorFlow."""

  FORMS = (FILES['train'] + FILES['test'],)

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    paths = self.paths(dl_manager)
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


# The official builders are registered under the same names. The classes below
# only write the datasets, and the official builders read the datasets.
with registered.skip_registration():

  class Mnist(_WithoutTensorFlow, mnist.MNIST):
    """Writes the files of `tensorflow_datasets.image_classification.MNIST`."""

    name = 'mnist'
    url_infos = mnist.MNIST.url_infos

  class FashionMnist(_WithoutTensorFlow, mnist.FashionMNIST):
    """Writes the files of the official `FashionMNIST` of TFDS."""

    name = 'fashion_mnist'
    url_infos = mnist.FashionMNIST.url_infos
