"""Windows of images: inside of the image, as the papers describe them."""

import numpy as np
import pytest

from bn_research.data.streams import windows

SIZES = [(500, 375), (375, 500), (224, 224), (3000, 10), (1, 1), (7, 5)]


def draws(count, seed=0):
  return np.random.default_rng(seed).random((count, windows.NUM_DRAWS))


@pytest.mark.parametrize('size', SIZES)
def test_random_windows_are_inside_of_the_image(size):
  width, height = size
  for row in draws(200):
    window = windows.random_window(size, row, 0.08)
    assert 0 <= window.left <= window.left + window.width <= width
    assert 0 <= window.top <= window.top + window.height <= height
    assert min(window.width, window.height) > 0


@pytest.mark.parametrize('least', [0.08, 0.5])
def test_random_windows_have_the_distribution_of_the_paper(least):
  # A square image whose windows nearly always fit at the first try.
  found = [
    windows.random_window((1000, 1000), row, least) for row in draws(4000)
  ]
  area = np.array([w.width * w.height / 1e6 for w in found])
  aspect = np.log([w.width / w.height for w in found])
  assert least - 0.01 < area.min() < least + 0.02
  # Windows of less area than 3/4 always fit, so the area is uniform there.
  small = area[area < 0.7]
  assert abs(small.mean() - (least + 0.7) / 2) < 0.01
  assert np.abs(aspect).max() < np.log(4 / 3) + 0.01
  assert abs(aspect[area < 0.7].std() - np.log(4 / 3) / np.sqrt(3)) < 0.01
  left = np.array([w.left / max(1, 1000 - w.width) for w in found])
  top = np.array([w.top / max(1, 1000 - w.height) for w in found])
  assert abs(left.mean() - 0.5) < 0.02
  assert abs(np.corrcoef(left, top)[0, 1]) < 0.05


@pytest.mark.parametrize(
  ('size', 'expected'),
  [((3000, 10), (1493, 0, 13, 10)), ((10, 3000), (0, 1493, 10, 13))],
)
def test_a_window_that_never_fits(size, expected):
  window = windows.random_window(size, np.full(windows.NUM_DRAWS, 0.5), 0.9)
  assert window == windows.Window(*expected)


def test_the_centre_is_that_of_an_image_whose_shorter_side_has_256_pixels():
  # 500 x 375 becomes 341.3 x 256, of which 224 x 224 are the centre.
  (window,) = windows.centre((500, 375))
  unit = 375 / 256
  np.testing.assert_allclose(
    window[:4],
    [(500 - 224 * unit) / 2, (375 - 224 * unit) / 2, 224 * unit, 224 * unit],
  )


def test_ten_windows():
  found = windows.ten((512, 256))
  corners = [(144, 16), (0, 0), (288, 0), (0, 32), (288, 32)]
  assert [(w.left, w.top) for w in found] == corners * 2
  assert {(w.width, w.height) for w in found} == {(224, 224)}
  assert [w.is_mirrored for w in found] == [False] * 5 + [True] * 5


@pytest.mark.parametrize('size', [(512, 256), (256, 512)])
def test_144_windows(size):
  found = windows.many(size)
  assert len(found) == 144
  # The three squares are the same part of the image on each of four scales.
  assert len(set(found)) == 2 * (3 + 4 * 3 * 5)
  for scale, shorter in enumerate((256, 288, 320, 352)):
    part = found[18 * scale : 18 * scale + 18]
    unit = 256 / shorter  # Pixels of the image in a pixel of the scaled image.
    for square in range(3):
      whole, *inside = part[6 * square : 6 * square + 6]
      assert whole[2:4] == (256, 256)
      assert max(whole[:2]) == 128 * square
      for window in inside:
        assert window.width == window.height == pytest.approx(224 * unit)
        assert whole.left - 1e-9 <= window.left
        assert window.left + window.width <= whole.left + 256 + 1e-9
        assert whole.top - 1e-9 <= window.top
        assert window.top + window.height <= whole.top + 256 + 1e-9


def test_a_random_window_reaches_each_edge():
  # The window of the first try has 5 x 5 of 7 x 9 pixels.
  row = np.full(windows.NUM_DRAWS, 0.5)
  row[0] = (25 / 63 - 0.1) / 0.9
  for across, down in ((0.0, 0.999), (0.999, 0.0)):
    row[-2:] = across, down
    window = windows.random_window((7, 9), row, 0.1)
    assert window[2:4] == (5, 5)
    assert (window.left, window.top) == (2 * (across > 0), 4 * (down > 0))
