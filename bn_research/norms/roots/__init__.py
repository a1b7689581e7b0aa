"""Inverse square roots of covariances: a library of its own.

The functions take and return arrays of JAX and import nothing else of this
project. See `roots.methods` for what each root is.
"""

from bn_research.norms.roots.methods import (
  METHODS,
  Info,
  cholesky,
  inverse_sqrt,
  newton_schulz,
  newton_schulz_with_info,
  pca,
  residual,
  zca,
)

__all__ = [
  'METHODS',
  'Info',
  'cholesky',
  'inverse_sqrt',
  'newton_schulz',
  'newton_schulz_with_info',
  'pca',
  'residual',
  'zca',
]
