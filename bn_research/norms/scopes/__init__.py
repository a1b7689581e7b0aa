"""The scope axis: which activations share statistics.

A scope sees activations through a `View`, in which at most one axis is cut in
two (rows into blocks, or channels into groups). It estimates the moments that
normalize, and those of all activations together, from which a population
learns.
"""

from bn_research.norms.scopes.batch import Batch
from bn_research.norms.scopes.example import Example
from bn_research.norms.scopes.neighbourhood import Neighbourhood
from bn_research.norms.scopes.reference import Reference
from bn_research.norms.scopes.view import (
  Estimator,
  Scope,
  View,
  as_tuples,
  canonical_axes,
)

__all__ = [
  'Batch',
  'Estimator',
  'Example',
  'Neighbourhood',
  'Reference',
  'Scope',
  'View',
  'as_tuples',
  'canonical_axes',
]
