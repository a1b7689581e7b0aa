"""The population axis: the memory of batches, for inference.

The map decides which arrays are remembered, and a population decides how. Every
state begins with the fields of `Running`.
"""

from bn_research.norms.populations.averages import Cumulative, Ema, Fixed
from bn_research.norms.populations.interval import Interval
from bn_research.norms.populations.pooled import Accumulated, Pooled
from bn_research.norms.populations.running import Running

__all__ = [
  'Accumulated',
  'Cumulative',
  'Ema',
  'Fixed',
  'Interval',
  'Pooled',
  'Running',
]
