"""Inverse square roots of covariance matrices.

The functions take and return JAX arrays. The package imports nothing from the
rest of this project. The docstring of `roots.methods` defines each root.
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
