"""Labels and legends lie beside what is drawn, not on it or on each other."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from bn_research.reports import labels


def test_numbers_are_moved_as_little_as_their_gap_needs():
  apart = np.asarray([0.0, 1.0, 5.0])
  np.testing.assert_allclose(labels.part(apart, 1.0), apart)
  np.testing.assert_allclose(labels.part(np.zeros(3), 2.0), [-2, 0, 2])
  # The upper two share their move; the lowest has room.
  np.testing.assert_allclose(
    labels.part(np.asarray([0.0, 4.0, 4.5]), 1.0), [0, 3.75, 4.75]
  )


@pytest.mark.parametrize('ends', [(0, 0, 0), (1, 0.99, 0), (0, 0.5, 1)])
def test_labels_of_ends_do_not_overlap(ends):
  canvas = Canvas(layout='constrained')
  axes = canvas.subplots()
  axes.set_ylim(-1, 2)
  for i, end in enumerate(ends):
    labels.label_end(axes, f'{i}%', (1, end))
  canvas.draw_without_rendering()
  labels.part_ends(axes)
  canvas.draw_without_rendering()
  boxes = [text.get_window_extent() for text in axes.texts]
  for one, other in itertools.combinations(boxes, 2):
    # Rounding may leave a common edge.
    assert min(one.y1, other.y1) - max(one.y0, other.y0) < 0.5


@pytest.mark.parametrize(('num_names', 'num_rows'), [(2, 1), (9, 3)])
def test_the_legend_is_below_the_panels_and_as_wide_as_they(
  num_names, num_rows
):
  canvas = Canvas(figsize=(6, 3), layout='constrained')
  axes = canvas.subplots(1, 2)
  names = [f'a series, number {i}' for i in range(num_names)]
  for name in reversed(names):
    for a in axes:
      a.plot([0, 1], [0, 1], label=name)
  labels.draw_legend(canvas, axes, ['not drawn', *names])
  canvas.draw_without_rendering()
  (legend,) = canvas.legends
  assert [text.get_text() for text in legend.get_texts()] == names
  box = legend.get_window_extent()
  assert box.x0 >= 0
  assert box.x1 <= canvas.bbox.width
  assert box.y1 <= min(a.get_tightbbox().y0 for a in axes)
  rows = {round(text.get_window_extent().y0) for text in legend.get_texts()}
  assert len(rows) == num_rows


def test_a_figure_without_lines_has_no_legend():
  canvas = Canvas()
  labels.draw_legend(canvas, [canvas.subplots()], ['a'])
  assert not canvas.legends
