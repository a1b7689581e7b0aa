"""The map axis: how the moments of a scope normalize activations."""

from bn_research.norms.maps.divide import Divide
from bn_research.norms.maps.standardize import Standardize
from bn_research.norms.maps.whiten import Whiten

__all__ = ['Divide', 'Standardize', 'Whiten']
