"""Random brightness, contrast and colour of training images, by Pillow."""

from typing import Any

import numpy as np

STRENGTHS = {'none': 0.0, 'reduced': 0.2, 'full': 0.5}
"""The largest change of a factor, by name."""

NUM_DRAWS = 6
"""The number of draws of `distort`."""


def distort(image: Any, draws: np.ndarray, strength: float) -> Any:
  """Changes brightness, contrast and colour, in random order.

  Each factor is uniform in [1 - strength, 1 + strength]. Factor 1 leaves an
  image as it is. Factor 0 of the brightness is black, of the contrast the mean
  grey of the image, and of the colour the image in grey.

  Args:
    image: A `PIL.Image.Image`, grey or in colour.
    draws: Uniform draws in [0, 1), float64 (NUM_DRAWS,).
    strength: A number in [0, 1].

  Returns:
    The changed image.

  Source: A. G. Howard, Some Improvements on Deep Convolutional Neural Network
  Based Image Classification, 2013, for `full`, without the noise of lighting.
  Ioffe and Szegedy (2015), Section 4.2.1, for the reduction, whose size is not
  published: 0.2 is a choice of this package.
  """
  from PIL import ImageEnhance

  kinds = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
  factors = 1 + strength * (2 * draws[:3] - 1)
  for place in np.argsort(draws[3:]):
    image = kinds[place](image).enhance(float(factors[place]))
  return image
