"""Places legends and labels beside the curves, without overlap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize

_POINTS_AN_INCH = 72
# Marks the labels of `label_end` among all texts of a panel.
_END = 'end of a line'


def draw_legend(canvas: Any, axes: Sequence[Any], names: Sequence[str]) -> None:
  """Draws a common legend below all panels, with a single entry for each name.

  A legend inside a panel could cover a curve. The legend has the smallest
  number of rows that fits into the width of the figure.

  Args:
    canvas: The Matplotlib figure.
    axes: The axes of the panels.
    names: The names of lines, in the order of the legend. A name without a line
      in any panel is left out.
  """
  drawn: dict[str, Any] = {}
  for a in axes:
    handles, labels = a.get_legend_handles_labels()
    drawn.update(zip(labels, handles, strict=True))
  names = [name for name in names if name in drawn]
  for num_rows in range(1, len(names) + 1):
    legend = canvas.legend(
      [drawn[name] for name in names],
      names,
      loc='outside lower center',
      ncols=-(-len(names) // num_rows),  # rounded up
      fontsize='small',
      handlelength=3,  # long enough to distinguish line styles
      borderpad=0,
      borderaxespad=0,
    )
    if legend.get_window_extent().width <= canvas.bbox.width:
      return
    # The last legend has a row for each name, and stays at any width.
    if num_rows < len(names):
      legend.remove()


def label_end(axes: Any, text: str, end: tuple[float, float]) -> None:
  """Writes a label to the right of the end of a line.

  Args:
    axes: Matplotlib axes.
    text: The label.
    end: The last point of the line, (x, y) in data coordinates.
  """
  axes.annotate(
    text,
    end,
    xytext=(2, 0),
    textcoords='offset points',
    verticalalignment='center',
    fontsize='small',
    gid=_END,
  )


def part_ends(axes: Any) -> None:
  """Moves the labels of line ends up or down, if the labels would overlap.

  The figure must have been drawn before the call, because the function reads
  the sizes of the labels on the canvas.

  Args:
    axes: Matplotlib axes with labels from `label_end`.
  """
  # Further texts of a panel keep their positions.
  ends = [text for text in axes.texts if text.get_gid() == _END]
  boxes = {text: text.get_window_extent() for text in ends}
  if not boxes:
    return
  texts = sorted(boxes, key=lambda text: boxes[text].y0)
  heights = np.asarray([(boxes[t].y0 + boxes[t].y1) / 2 for t in texts])
  moves = part(heights, max(box.height for box in boxes.values())) - heights
  for text, move in zip(texts, moves, strict=True):
    # Heights are in pixels, and the offset of a label is in points.
    right, _ = text.get_position()
    text.set_position((right, move * _POINTS_AN_INCH / axes.figure.dpi))


def part(values: np.ndarray, gap: float) -> np.ndarray:
  """Returns the nearest numbers with differences of at least `gap`.

    argmin Σ (yᵢ − xᵢ)²  subject to  yᵢ₊₁ − yᵢ ≥ gap

  With zᵢ = yᵢ − i · gap, the constraint is zᵢ₊₁ ≥ zᵢ. The problem is then an
  isotonic regression.

  Args:
    values: (n,) floating, the numbers x in increasing order.
    gap: The smallest difference allowed.

  Returns:
    (n,) floating, the numbers y.
  """
  steps = gap * np.arange(len(values))
  return optimize.isotonic_regression(values - steps).x + steps
