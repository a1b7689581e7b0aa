"""The cost of a run, from abstract values: no data, no device, no compiler."""

from bn_research.training.costs.estimation import Cost, estimate
from bn_research.training.costs.table import lines

__all__ = ['Cost', 'estimate', 'lines']
