"""The coupled Newton-Schulz iteration for the inverse square root.

The iteration begins with Y = A and Z = I, and repeats

  P = α I + β Z Y,    Y ← Y P,    Z ← P Z.

Y tends to A^½ and Z tends to A^-½. The choice (α, β) = (3/2, -1/2) is the
Newton-Schulz iteration.

Every matrix is a polynomial of A. In exact arithmetic all matrices commute,
and with rounding errors the order of the factors matters. The order above is
stable. Two variants are not stable: the symmetrization of Y or Z in each step,
and the uncoupled iteration Z ← (3 Z - Z³ A) / 2 of the IterNorm paper.

Source: Higham, "Functions of Matrices" (2008), section 6.7 and equation 6.35;
Huang et al., "Iterative Normalization" (2019), equation 4.
"""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from bn_research.norms.roots import matrices, minimax
from bn_research.norms.roots.matrices import matmul

Normalizer: TypeAlias = Literal['spectral', 'trace']

# The first cubic is the best cubic on [_LOW, 1], for condition numbers up to
# 1 / _LOW² = 1e4. A larger condition number takes more steps.
_LOW = 1e-2


def to_tolerance(
  matrix: jax.Array, tolerance: float | None, normalizer: Normalizer
) -> tuple[jax.Array, jax.Array]:
  """Computes A^-½ to a tolerance, by matrix products only.

    ‖Z A Z - I‖_F ≤ tolerance

  In float32, for condition numbers up to 1e4, the iteration reaches the default
  tolerance in eight or nine steps, with 21 or 24 products. Autodiff cannot
  differentiate the loop: `roots.newton_schulz` has derivatives.

  The matrix may be singular. Let A be the matrix after the division by the
  normalizer. The loop rejects each step to a Z with ‖Z‖_F² > d / (4 ε). If no
  eigenvalue of A is below 4 ε, A^-½ is within the bound. For a singular A, the
  bound stops the growth of Z in the null space. Without the bound the rounding
  errors of Z A Z, of the size ε ‖Z‖², reach several hundred. With the bound
  ‖Z A Z - I‖_F stays near √d or below. Z = 0 has the residual √d.

  Args:
    matrix: A, (..., d, d), symmetric positive definite, float32 or float64.
    tolerance: The tolerance in the Frobenius norm. None means
      `minimax.default_tolerance`.
    normalizer: 'spectral' or 'trace', the divisor of A. After the division the
      eigenvalues are at most 1.

  Returns:
    A^-½, (..., d, d), of the same dtype, and the number of steps, int32 (...).
  """
  if tolerance is None:
    tolerance = minimax.default_tolerance(matrix)
  y, square, size = _normalized(matrix, normalizer)
  residual = matrices.distance_to_identity(y)
  low, high = (jnp.full_like(residual, bound) for bound in (_LOW, 1))
  cubic = minimax.best_cubic(low, high, residual)
  y, z = _first_step(y, square, cubic.alpha, cubic.beta)
  state, last, count = minimax.drive_to_identity(
    _advance, (matmul(z, y), y, z), cubic.low, cubic.high, tolerance, _is_sound
  )
  product, _, z = state
  # The last step needs no Y: the step takes one product instead of three.
  z = matmul(_factor(product, last.alpha, last.beta), z)
  root = matrices.symmetrize(z) / jnp.sqrt(size)
  # The loop counts neither the first step nor the last step.
  return root, jnp.squeeze(count, (-2, -1)) + 2


def truncated(
  matrix: jax.Array, num_iterations: int, normalizer: Normalizer
) -> jax.Array:
  """Does exactly `num_iterations` Newton-Schulz steps, without a loop.

    Z ← (3 I - Z Y) Z / 2,    Y ← Y (3 I - Z Y) / 2

  A truncated iteration differs from the inverse square root, and the derivative
  differs, too. Plain autodiff differentiates the steps and the normalizer.

  Args:
    matrix: A, (..., d, d), symmetric positive definite, float32 or float64.
    num_iterations: The number of steps, 1 or more. IterNorm takes 5 steps.
    normalizer: 'spectral' or 'trace', the divisor of A. IterNorm divides by the
      trace.

  Returns:
    An approximation of A^-½, (..., d, d), of the same dtype.

  Source: Huang et al., "Iterative Normalization" (2019), Algorithm 1.
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
  """Returns A / c, (A / c)² and c, with a single product."""
  if normalizer == 'spectral':
    return matrices.squared_and_bounded(matrix)
  size = matrices.trace(matrix)
  y = matrix / size
  return y, matmul(y, y), size


def _factor(product, alpha, beta):
  return alpha * matrices.identity_like(product) + beta * product


def _first_step(y, square, alpha, beta):
  """Does the step from Z = I: the square is the only product."""
  return alpha * y + beta * square, _factor(y, alpha, beta)


def _is_sound(state):
  """Tells whether ‖Z‖_F² ≤ d / (4 ε), as for each eigenvalue of A ≥ 4 ε."""
  # The norm of Z costs no product. The residual of Z Y cannot replace the norm:
  # Y converges to zero in the null space of A, and the growth of Z is invisible
  # in Z Y until Z A Z consists of rounding errors.
  z = state[-1]
  least = minimax.least_eigenvalue(z.dtype)
  return matrices.frobenius_norm(z) ** 2 * least <= z.shape[-1]


def _advance(state, cubic):
  product, y, z = state
  p = _factor(product, cubic.alpha, cubic.beta)
  y, z = matmul(y, p), matmul(p, z)
  return matmul(z, y), y, z
