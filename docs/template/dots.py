"""A panel: a measure of each run, one dot a seed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bn_research.reports import measures


@dataclasses.dataclass(frozen=True)
class Dots:
  """The attributes are the options."""

  measure: Mapping[str, Any]
  ylabel: str = ''

  def draw(self, axes, series):
    """Draws all series on Matplotlib's axes."""
    for place, some in enumerate(series):
      values = [measures.measure(self.measure, run) for run in some.runs]
      axes.plot([place] * len(values), values, 'o', color=some.color)
    axes.set_xticks(range(len(series)), [some.label for some in series])
    axes.set_ylabel(self.ylabel)
