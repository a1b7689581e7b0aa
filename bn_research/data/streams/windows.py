"""Windows of an image: random windows to train, fixed windows to evaluate."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_TRIES = 10
NUM_DRAWS = 2 * _TRIES + 2
"""The number of draws of `random_window`."""
_LOG_ASPECT = math.log(4 / 3)
# A network with inputs of 224 pixels sees the centre of an image whose shorter
# side has 256 pixels.
_SHORTER_SIDE = 8 / 7
_SCALES = (8 / 7, 9 / 7, 10 / 7, 11 / 7)


class Window(NamedTuple):
  """A part of an image, in pixels of the image.

  Attributes:
    left: The first column.
    top: The first row.
    width: The number of columns.
    height: The number of rows.
    is_mirrored: Whether the left side becomes the right side.
  """

  left: float
  top: float
  width: float
  height: float
  is_mirrored: bool = False


def random_window(
  size: tuple[int, int], draws: np.ndarray, min_area: float
) -> Window:
  """Chooses a random window.

  The area is uniform in [min_area, 1] of the image, log(width / height) is
  uniform in [-log(4/3), log(4/3)], and the place is uniform. A window that does
  not fit is drawn again, at most ten times. The largest window of the centre
  with an allowed width / height replaces ten windows that do not fit.

  Args:
    size: Width and height of the image.
    draws: Uniform draws in [0, 1), float64 (NUM_DRAWS,).
    min_area: The least area, in (0, 1].

  Source: Szegedy et al., Going Deeper with Convolutions, 2015, Section 6. The
  distribution of width / height is not published, and the logarithm is a
  convention.
  """
  width, height = size
  *tries, across, down = draws.tolist()
  for u, v in zip(tries[::2], tries[1::2], strict=True):
    area = (min_area + (1 - min_area) * u) * width * height
    root = math.exp(_LOG_ASPECT * (v - 0.5))
    w, h = round(math.sqrt(area) * root), round(math.sqrt(area) / root)
    if 0 < w <= width and 0 < h <= height:
      left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
      return Window(left, top, w, h)
  w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
  return Window((width - w) // 2, (height - h) // 2, w, h)


def centre(size: tuple[int, int]) -> list[Window]:
  """Returns the square of the centre, 7/8 of the shorter side of the image."""
  return _five(size, _SHORTER_SIDE)[:1]


def ten(size: tuple[int, int]) -> list[Window]:
  """Returns the squares of the centre and of the corners, and mirror images.

  Source: Krizhevsky et al., ImageNet Classification with Deep Convolutional
  Neural Networks, 2012, Section 4.1.
  """
  return _with_mirrored(_five(size, _SHORTER_SIDE))


def many(size: tuple[int, int]) -> list[Window]:
  """Returns 144 windows: 4 scales x 3 squares x 6 windows x 2 mirror images.

  On each scale, three squares lie along the longer side. A square gives the
  square itself, and the windows of the centre and of the corners.

  Source: Szegedy et al., Going Deeper with Convolutions, 2015, Section 7.
  """
  width, height = size
  side = min(size)
  found = []
  for scale in _SCALES:
    for place in (0, 0.5, 1):
      left, top = place * (width - side), place * (height - side)
      found.append(Window(left, top, side, side))
      for inside in _five((side, side), scale):
        found.append(
          inside._replace(left=inside.left + left, top=inside.top + top)
        )
  return _with_mirrored(found)


EVALUATION: dict[int, Callable[[tuple[int, int]], list[Window]]] = {
  1: centre,
  10: ten,
  144: many,
}
"""The windows of an evaluation, by number: functions of width and height."""


def _five(size: tuple[int, int], scale: float) -> list[Window]:
  """Returns squares of the centre and the corners, 1 / scale of the side."""
  side = min(size) / scale
  right, bottom = size[0] - side, size[1] - side
  places = ((0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1))
  return [Window(x * right, y * bottom, side, side) for x, y in places]


def _with_mirrored(found: list[Window]) -> list[Window]:
  return found + [window._replace(is_mirrored=True) for window in found]
