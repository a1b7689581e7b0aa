"""The map axis: what is done with the moments of a scope."""

from bn_research.norms.maps.divide import Divide
from bn_research.norms.maps.standardize import Standardize
from bn_research.norms.maps.whiten import Whiten

__all__ = ['Divide', 'Standardize', 'Whiten']
