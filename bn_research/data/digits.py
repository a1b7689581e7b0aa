"""The handwritten digits of scikit-learn: real data without a download."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
  """The 1797 digits of 8 × 8 pixels bundled with scikit-learn.

  Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
  UCI Machine Learning Repository, 1998 (the test set).
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='The 8 x 8 handwritten digits bundled with scikit-learn.',
      homepage='https://archive.ics.uci.edu/dataset/80',
      features=tfds.features.FeaturesDict(
        {
          # `tfds.features.Image` needs TensorFlow to write arrays.
          'image': tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
          'label': tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    # The import takes half a second, and only the preparation needs the digits.
    from sklearn import datasets

    digits = datasets.load_digits()
    # The bundle lists the digits writer by writer, and a shuffle mixes the
    # writers. Then the digits are sorted by class, and every ten neighbours are
    # split 7 : 1 : 2, for nearly equal shares of a class in all splits.
    # NumPy guarantees the raw stream of a bit generator for all versions, but
    # the stream of permutations only for the present version.
    order = np.argsort(np.random.Philox(key=0).random_raw(len(digits.target)))
    order = order[np.argsort(digits.target[order], kind='stable')]
    images = np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)
    labels = digits.target[order]
    place = np.arange(len(labels)) % 10
    splits = {'train': place < 7, 'validation': place == 7, 'test': place > 7}
    return {
      split: self._generate_examples(images[part, ..., None], labels[part])
      for split, part in splits.items()
    }

  def _generate_examples(
    self, images: np.ndarray, labels: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {'image': image, 'label': int(label)}
