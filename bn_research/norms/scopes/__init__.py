"""The scope axis: which activations share statistics.

A scope sees activations through a `View`, in which at most one axis is cut in
two (rows into blocks, or channels into groups). A scope estimates the moments
that normalize, and the moments of all activations together, from which a
population learns.
"""

from bn_research.norms.scopes.batch import Batch
from bn_research.norms.scopes.example import Example
from bn_research.norms.scopes.neighbourhood import Neighbourhood
from bn_research.norms.scopes.reference import Reference

__all__ = ['Batch', 'Example', 'Neighbourhood', 'Reference']
