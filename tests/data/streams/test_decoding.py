"""Decoding by Pillow, and random colours, against float64 NumPy."""

import io

import numpy as np
import pytest
from PIL import Image

from bn_research.data.streams import decoding, photometric, windows

WHOLE = windows.Window(0, 0, 64, 48)


def stored(image, kind='PNG', **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def smooth(width, height):
  """Returns an image whose channels are linear in both coordinates."""
  x = np.linspace(20, 230, width)
  y = np.linspace(230, 20, height)
  red, green = np.broadcast_arrays(x, y[:, None])
  grid = np.stack([red, green, (red + green) / 2], -1)
  return Image.fromarray(np.rint(grid).astype(np.uint8))


@pytest.fixture
def noise():
  pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
  return Image.fromarray(pixels)


def test_png_without_loss(noise):
  found = decoding.decode(decoding.opened(stored(noise)), 3)
  np.testing.assert_array_equal(decoding.pixels(found), np.asarray(noise))


def test_plain_pixels(noise):
  clear = np.asarray(noise.convert('RGBA')).copy()
  clear[::2, :, 3] = 17
  for pixels in (np.asarray(noise), np.asarray(noise)[..., :1].copy(), clear):
    found = decoding.decode(decoding.opened(pixels), pixels.shape[-1])
    np.testing.assert_array_equal(decoding.pixels(found), pixels)


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', '1'])
def test_other_modes_become_colours(mode, noise):
  image = noise.convert(mode)
  kind = 'TIFF' if mode == 'CMYK' else 'PNG'
  found = decoding.pixels(
    decoding.decode(decoding.opened(stored(image, kind)), 3)
  )
  np.testing.assert_array_equal(found, np.asarray(image.convert('RGB')))


def test_colours_become_grey(noise):
  found = decoding.pixels(decoding.decode(decoding.opened(stored(noise)), 1))
  np.testing.assert_array_equal(found[..., 0], np.asarray(noise.convert('L')))


def test_a_jpeg_is_decoded_small_if_that_is_enough():
  content = stored(smooth(512, 384), 'JPEG', quality=95)
  for needed, size in ((1, 512), (0.51, 512), (0.5, 256), (0.1, 64)):
    found = decoding.decode(decoding.opened(content), 3, needed)
    assert found.size == (size, size * 3 // 4)


@pytest.mark.parametrize('size', [512, 511, 509])
def test_a_window_has_the_pixels_of_the_window(size):
  image = smooth(size, 384)
  window = windows.Window(100, 60, 300, 240)
  # The colour of the middle of each output pixel, by the line of `smooth`.
  x = 100 + (np.arange(32) + 0.5) * 300 / 32 - 0.5
  y = 60 + (np.arange(32) + 0.5) * 240 / 32 - 0.5
  red = 20 + 210 * x / (size - 1)
  green = 230 - 210 * y / 383
  red, green = np.broadcast_arrays(red, green[:, None])
  expected = np.stack([red, green, (red + green) / 2], -1)
  for content in (stored(image), stored(image, 'JPEG', quality=98)):
    for mirrored in (False, True):
      chosen = [window._replace(is_mirrored=mirrored)]
      (found,) = decoding.cut(decoding.opened(content), chosen, 3, 32)
      pixels = decoding.pixels(found)[:, :: -1 if mirrored else 1]
      assert pixels.shape == (32, 32, 3)
      assert np.abs(pixels - expected).max() < 3


def test_clear_pixels_have_no_part_in_a_scaled_colour():
  pixels = np.zeros((48, 64, 4), np.uint8)
  pixels[:, ::2] = (200, 0, 0, 255)
  pixels[:, 1::2] = (0, 200, 0, 0)
  (found,) = decoding.cut(decoding.opened(pixels), [WHOLE], 4, 4)
  expected = np.broadcast_to((200, 0, 0, 127.5), (4, 4, 4))
  np.testing.assert_allclose(decoding.pixels(found), expected, atol=4)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
@pytest.mark.parametrize('keep', [0, 10, 0.5])
def test_damaged_files(kind, keep, noise):
  content = stored(noise, kind)
  part = content[: int(keep * len(content)) if keep < 1 else keep]
  with pytest.raises(decoding.Unreadable, match=r'\w+: .+'):
    decoding.cut(decoding.opened(part), [WHOLE], 3, 16)


def colours(pixels, kind, factor):
  """Returns brightness, contrast or colour, in float64."""
  grey = pixels @ np.array([299, 587, 114]) / 1000
  other = {
    0: np.zeros(()),
    1: np.rint(grey.mean()),
    2: np.rint(grey)[..., None],
  }[kind]
  return np.clip(other + factor * (pixels - other), 0, 255)


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize('strength', [0.2, 0.5])
def test_colours_against_numpy(order, strength, noise):
  uniform = np.array([0.1, 0.9, 0.3])
  places = np.argsort(order)  # The draw of a kind decides its place.
  draws = np.concatenate([uniform, (places + 0.5) / 3])
  found = decoding.pixels(photometric.distort(noise, draws, strength))
  pixels = np.asarray(noise).astype(np.float64)
  for kind in order:
    factor = 1 + strength * (2 * uniform[kind] - 1)
    pixels = np.floor(colours(pixels, kind, factor))
  assert np.abs(found - pixels).max() <= 4


def test_colours_differ_from_draw_to_draw(noise):
  rng = np.random.default_rng(1)
  found = {
    photometric.distort(noise, rng.random(6), 0.5).tobytes() for _ in range(20)
  }
  assert len(found) == 20


def test_no_strength_changes_nothing(noise):
  draws = np.random.default_rng(1).random(6)
  found = photometric.distort(noise, draws, 0.0)
  np.testing.assert_array_equal(np.asarray(found), np.asarray(noise))


def test_grey_images_have_colours_too(noise):
  grey = noise.convert('L')
  found = photometric.distort(grey, np.random.default_rng(1).random(6), 0.5)
  assert found.mode == 'L'
  assert found.tobytes() != grey.tobytes()
