"""The Lyapunov equation by products only, when the inverse is known."""

import jax
import jax.numpy as jnp

from bn_research.norms.roots import matrices, minimax
from bn_research.norms.roots.matrices import matmul


def solve(root: jax.Array, inverse: jax.Array, rhs: jax.Array) -> jax.Array:
  """Solves R X + X R = B for X by the matrix sign function.

    sign [[R, B], [0, -R]] = [[I, 2X], [0, -I]]

  An odd cubic keeps that shape, [[A, B], [0, -A]]:

    A ← α A + β A³,    B ← α B + β (A² B - A B A + B A²),

  and X = B / 2 where A has become I: five products a step. The first step is
  Newton's, ½ (μ M + M⁻¹ / μ), which costs no inverse because that is given, and
  leaves A with a condition number of about √κ(R) / 2. Its eigenvalues are then
  1 at least, so that the interval of the cubics is known.

  Args:
    root: R, symmetric positive definite, (..., d, d).
    inverse: R⁻¹, (..., d, d).
    rhs: B, symmetric, (..., d, d).

  Returns:
    X, (..., d, d).

  Source: Higham, "Functions of Matrices" (2008), sections 2.4 and 5.3 to 5.5
  (Roberts' method; scaled Newton; Newton-Schulz).
  """
  mu = jnp.sqrt(matrices.spectral_bound(inverse))
  mu = mu / jnp.sqrt(matrices.spectral_bound(root))
  a = (mu * root + inverse / mu) / 2
  b = (mu * rhs + matmul(matmul(inverse, rhs), inverse) / mu) / 2
  a, square, size = matrices.squared_and_bounded(a)
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
  a = matrices.symmetrize(a)
  return matmul(a, a), a, b


def _advance_rhs(a, b, cubic):
  ab = matmul(a, b)
  aab = matmul(a, ab)
  # B stays symmetric: B A² is the transpose of A² B.
  change = aab + matrices.transpose(aab) - matmul(ab, a)
  return cubic.alpha * b + cubic.beta * change
