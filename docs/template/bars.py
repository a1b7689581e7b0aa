"""A dataset: bright bars, level or upright, in noise."""

import numpy as np

from bn_research import data


def bars(size: int = 8, num_train: int = 400, num_test: int = 200):
  """Returns a dataset, as a config names it."""
  rng = np.random.default_rng(0)

  def split(count):
    labels = rng.integers(0, 2, count, np.int32)
    images = rng.integers(0, 120, (count, size, size, 1), np.uint8)
    for image, label, place in zip(
      images, labels, rng.integers(0, size, count), strict=True
    ):
      bar = image[place] if label else image[:, place]
      bar += 100
    return data.Split(images, labels)

  return data.Dataset('bars', split(num_train), split(num_test), num_classes=2)
