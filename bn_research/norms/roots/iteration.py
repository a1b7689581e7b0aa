"""The coupled Newton-Schulz iteration for the inverse square root.

From Y = A and Z = I, repeated,

  P = α I + β Z Y,    Y ← Y P,    Z ← P Z,

brings Y to A^½ and Z to A^-½; (α, β) = (3/2, -1/2) is Newton-Schulz. Every
matrix is a polynomial of A, so that they all commute, but only in exact
arithmetic: this order of the factors is stable, symmetrizing Y or Z on the way
is not (nor is the uncoupled Z ← (3 Z - Z³ A) / 2 of the IterNorm paper).

Source: Higham, "Functions of Matrices" (2008), section 6.7 and equation 6.35;
Huang et al., "Iterative Normalization" (2019), equation 4.
"""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from bn_research.norms.roots import matrices, minimax
from bn_research.norms.roots.matrices import matmul

Normalizer: TypeAlias = Literal['spectral', 'trace']

# The first cubic is the best one for condition numbers up to 1e4, the square of
# its inverse; above that the iteration takes more steps.
_LOW = 1e-2


def to_tolerance(
  matrix: jax.Array, tolerance: float | None, normalizer: Normalizer
) -> tuple[jax.Array, jax.Array]:
  """Iterates until ‖Z A Z - I‖_F is within the tolerance; matmul only.

  Eight steps, 21 products, to the default tolerance in float32, for condition
  numbers up to 1e4. Not differentiable: see `roots.newton_schulz`.

  Args:
    matrix: Symmetric positive definite, (..., d, d).
    tolerance: In the Frobenius norm; None for `minimax.default_tolerance`.
    normalizer: What divides the matrix, so that its eigenvalues are at most 1.

  Returns:
    The inverse square root, (..., d, d), and how many steps were taken,
    int32 (...).
  """
  if tolerance is None:
    tolerance = minimax.default_tolerance(matrix)
  y, square, size = _normalized(matrix, normalizer)
  residual = matrices.distance_to_identity(y)
  low, high = (jnp.full_like(residual, bound) for bound in (_LOW, 1))
  cubic = minimax.best_cubic(low, high, residual)
  y, z = _first_step(y, square, cubic.alpha, cubic.beta)
  state, last, count = minimax.drive_to_identity(
    _advance, (matmul(z, y), y, z), cubic.low, cubic.high, tolerance
  )
  product, _, z = state
  z = matmul(_factor(product, last.alpha, last.beta), z)
  root = matrices.symmetrize(z) / jnp.sqrt(size)
  return root, jnp.squeeze(count, (-2, -1)) + 2


def truncated(
  matrix: jax.Array, num_iterations: int, normalizer: Normalizer
) -> jax.Array:
  """Exactly `num_iterations` steps of Newton-Schulz, unrolled.

  Differentiable by plain autodiff, the normalizer included: a truncated
  iteration is not the inverse square root, and neither is its derivative.

  Args:
    matrix: Symmetric positive definite, (..., d, d).
    num_iterations: At least 1; IterNorm takes 5.
    normalizer: IterNorm takes 'trace'.

  Returns:
    An approximation of the inverse square root, (..., d, d).
  """
  y, square, size = _normalized(matrix, normalizer)
  y, z = _first_step(y, square, 1.5, -0.5)
  for _ in range(num_iterations - 2):
    p = _factor(matmul(z, y), 1.5, -0.5)
    y, z = matmul(y, p), matmul(p, z)
  if num_iterations > 1:
    z = matmul(_factor(matmul(z, y), 1.5, -0.5), z)
  return matrices.symmetrize(z) / jnp.sqrt(size)


def _normalized(matrix, normalizer):
  """A / c, (A / c)² and c; the square costs no product more than c does."""
  if normalizer == 'spectral':
    return matrices.squared_and_bounded(matrix)
  size = matrices.trace(matrix)
  y = matrix / size
  return y, matmul(y, y), size


def _factor(product, alpha, beta):
  return alpha * matrices.identity_like(product) + beta * product


def _first_step(y, square, alpha, beta):
  """The step from Z = I: no product but the square."""
  return alpha * y + beta * square, _factor(y, alpha, beta)


def _advance(state, cubic):
  product, y, z = state
  p = _factor(product, cubic.alpha, cubic.beta)
  y, z = matmul(y, p), matmul(p, z)
  return matmul(z, y), y, z
