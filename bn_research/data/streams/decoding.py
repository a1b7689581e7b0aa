"""From the stored bytes of an image to windows of pixels, by Pillow."""

import io
from typing import Any

import numpy as np

from bn_research.data.decoding import MODES
from bn_research.data.streams import windows


class Unreadable(Exception):
  """An example cannot be read; the message has the reason."""


def opened(stored: bytes | np.ndarray) -> Any:
  """Returns a stored image as a `PIL.Image.Image`; bytes stay encoded.

  Args:
    stored: The bytes of a JPEG or PNG file, or pixels, uint8 (height, width,
      channels).

  Raises:
    Unreadable: If the bytes are no image.
  """
  from PIL import Image

  if isinstance(stored, np.ndarray):
    is_grey = stored.shape[-1] == 1
    return Image.fromarray(stored[..., 0] if is_grey else stored)
  try:
    return Image.open(io.BytesIO(stored))
  # Damaged bytes raise errors of many types, also in Pillow's own code.
  except Exception as error:
    raise Unreadable(_reason(error)) from error


def decode(image: Any, num_channels: int, needed: float = 1.0) -> Any:
  """Decodes an image, a JPEG in smaller size if that is enough.

  A decoder of JPEG can leave out high frequencies, and give an image of 1/2,
  1/4 or 1/8 of the size in less time.

  Args:
    image: The result of `opened`.
    num_channels: 1 for grey, 3 for red, green and blue, 4 with transparency.
    needed: The least size of the result, as a part of the size of the image.

  Returns:
    A `PIL.Image.Image` with pixels in memory.

  Raises:
    Unreadable: If the bytes are damaged.
  """
  try:
    if needed <= 0.5:
      image.draft(None, tuple(max(1, int(n * needed)) for n in image.size))
    mode = MODES[num_channels]
    image.load()
    # `convert` would copy an image that has the mode already.
    return image if image.mode == mode else image.convert(mode)
  except Exception as error:
    raise Unreadable(_reason(error)) from error


def cut(
  image: Any, chosen: list[windows.Window], num_channels: int, size: int
) -> list[Any]:
  """Decodes an image, and scales windows of the image to squares.

  The colours of an image with transparency count as much as the pixels are
  opaque, as Pillow scales such images.

  Args:
    image: The result of `opened`.
    chosen: Windows, in pixels of `image`.
    num_channels: 1 for grey, 3 for red, green and blue, 4 with transparency.
    size: Height and width of the results, in pixels.

  Returns:
    A `PIL.Image.Image` for each window.

  Raises:
    Unreadable: If the bytes are damaged.
  """
  from PIL import Image

  width, height = image.size
  needed = max(size / min(w.width, w.height) for w in chosen)
  decoded = decode(image, num_channels, needed)
  across, down = decoded.width / width, decoded.height / height
  found = []
  for window in chosen:
    box = (
      window.left * across,
      window.top * down,
      min((window.left + window.width) * across, decoded.width),
      min((window.top + window.height) * down, decoded.height),
    )
    # Pillow takes the mean over all pixels of the box, also in a reduction.
    scaled = decoded.resize((size, size), Image.Resampling.BILINEAR, box)
    if window.is_mirrored:
      scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found.append(scaled)
  return found


def pixels(image: Any) -> np.ndarray:
  """Returns the pixels of an image, uint8 (height, width, channels)."""
  found = np.asarray(image)
  return found if found.ndim == 3 else found[..., None]


def _reason(error: Exception) -> str:
  return f'{type(error).__name__}: {error}'.splitlines()[0]
