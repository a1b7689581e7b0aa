"""Names beside what is drawn, where they hide neither it nor each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize

_POINTS_AN_INCH = 72
_END = 'end of a line'


def draw_legend(canvas: Any, axes: Sequence[Any], names: Sequence[str]) -> None:
  """Draws one legend below all panels, with every line once.

  Inside of a panel it would lie on a curve, sooner or later. It takes as few
  rows as fit into the width of the figure.

  Args:
    canvas: Matplotlib's figure.
    axes: Those of its panels.
    names: The names of lines, in the order of the legend; those that no panel
      drew are left out.
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
      ncols=-(-len(names) // num_rows),
      fontsize='small',
      handlelength=3,  # enough to tell line styles by
      borderpad=0,
      borderaxespad=0,
    )
    if legend.get_window_extent().width <= canvas.bbox.width:
      return
    if num_rows < len(names):
      legend.remove()


def label_end(axes: Any, text: str, end: tuple[float, float]) -> None:
  """Writes a label to the right of the end of a line."""
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
  """Moves the labels of ends up or down where they would overlap.

  Sizes must be settled: it works with what is seen.
  """
  # Texts that a panel has put elsewhere stay.
  ends = [text for text in axes.texts if text.get_gid() == _END]
  boxes = {text: text.get_window_extent() for text in ends}
  if not boxes:
    return
  texts = sorted(boxes, key=lambda text: boxes[text].y0)
  heights = np.asarray([(boxes[t].y0 + boxes[t].y1) / 2 for t in texts])
  moves = part(heights, max(box.height for box in boxes.values())) - heights
  for text, move in zip(texts, moves, strict=True):
    right, _ = text.get_position()
    text.set_position((right, move * _POINTS_AN_INCH / axes.figure.dpi))


def part(values: np.ndarray, gap: float) -> np.ndarray:
  """Returns the nearest numbers that are `gap` apart.

    argmin Σ (yᵢ − xᵢ)²  subject to  yᵢ₊₁ − yᵢ ≥ gap

  Without i · gap, the y increase: an isotonic regression.

  Args:
    values: (n,) x, in increasing order.
    gap: The smallest difference allowed.

  Returns:
    (n,) y.
  """
  steps = gap * np.arange(len(values))
  return optimize.isotonic_regression(values - steps).x + steps
