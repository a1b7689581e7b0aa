"""Solves the Lyapunov equation by matrix products, given the inverse."""

import jax
import jax.numpy as jnp

from bn_research.norms.roots import matrices, minimax
from bn_research.norms.roots.matrices import matmul


def solve(root: jax.Array, inverse: jax.Array, rhs: jax.Array) -> jax.Array:
  """Solves R X + X R = B for X by the matrix sign function.

    sign [[R, B], [0, -R]] = [[I, 2X], [0, -I]]

  An odd cubic of a matrix with the block shape M = [[A, B], [0, -A]] has the
  same block shape:

    A ← α A + β A³,    B ← α B + β (A² B - A B A + B A²).

  Each step takes five products. After convergence A = I and X = B / 2.

  The first step is the Newton step ½ (μ M + M⁻¹ / μ). The step needs no matrix
  inversion, because the inverse is an argument. The step leaves A with a
  condition number of about √κ(R) / 2.

  Args:
    root: R, (..., d, d), symmetric positive definite, float32 or float64.
    inverse: R⁻¹, (..., d, d), of the same dtype.
    rhs: B, (..., d, d), symmetric, of the same dtype.

  Returns:
    X, (..., d, d), of the same dtype.

  Source: Higham, "Functions of Matrices" (2008), sections 2.4 and 5.3 to 5.5
  (Roberts' method; scaled Newton; Newton-Schulz).
  """
  mu = jnp.sqrt(matrices.spectral_bound(inverse))
  mu = mu / jnp.sqrt(matrices.spectral_bound(root))
  a = (mu * root + inverse / mu) / 2
  b = (mu * rhs + matmul(matmul(inverse, rhs), inverse) / mu) / 2
  a, square, size = matrices.squared_and_bounded(a)
  # The Newton step maps each eigenvalue x to ½ (μ x + 1 / (μ x)) ≥ 1. After the
  # division by the bound, 1 / size is a lower bound of the eigenvalues.
  (_, a, b), last, _ = minimax.drive_to_identity(
    _advance,
    (square, a, b / size),
    1 / size,
    jnp.ones_like(size),
    minimax.default_tolerance(root),
  )
  return _advance_rhs(a, b, last) / 2


def _advance(state, cubic):
  square, a, b = state
  b = _advance_rhs(a, b, cubic)
  a = cubic.alpha * a + cubic.beta * matmul(a, square)
  # `_advance_rhs` presumes a symmetric A. Rounding breaks the symmetry.
  a = matrices.symmetrize(a)
  return matmul(a, a), a, b


def _advance_rhs(a, b, cubic):
  ab = matmul(a, b)
  aab = matmul(a, ab)
  # A and B are symmetric. A transpose gives B A² from A² B and saves a product.
  change = aab + matrices.transpose(aab) - matmul(ab, a)
  return cubic.alpha * b + cubic.beta * change
