"""The scope axis: which activations share statistics.

A scope sees activations through a `View`. A view cuts at most one axis in two:
the rows into blocks, or the channels into groups. A scope estimates the moments
that normalize, and the moments of all activations, from which a population
learns.
"""

from bn_research.norms.scopes.batch import Batch
from bn_research.norms.scopes.example import Example
from bn_research.norms.scopes.neighbourhood import Neighbourhood
from bn_research.norms.scopes.patches import Patches
from bn_research.norms.scopes.reference import Reference

__all__ = ['Batch', 'Example', 'Neighbourhood', 'Patches', 'Reference']
