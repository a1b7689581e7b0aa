"""Inverse square roots of symmetric positive definite matrices.

For a covariance S each function returns a W with

  W S Wᵀ = I,

so that y = W x is white for a column x, and y = x @ Wᵀ for rows. The solutions
differ by a rotation:

  zca, newton_schulz   W = S^-½, symmetric: the closest to no change
  cholesky             W = L⁻¹ with S = L Lᵀ, lower triangular
  pca                  W = Λ^-½ Uᵀ with S = U Λ Uᵀ

All are batched over leading axes, compute in float32 at least, and have
derivatives of every order in both modes. Those of S^-½ have no difference of
eigenvalues in them (see `implicit`): they are right at the identity and at
ties.

Inputs must be finite and positive definite to rounding, their trace positive;
NaN gives NaN, and nothing runs without bound.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.roots import (
  eigen,
  implicit,
  iteration,
  lyapunov,
  matrices,
)
from bn_research.norms.roots.matrices import matmul, transpose
from bn_research.norms.roots.tags import tag_statistics


def inverse_sqrt(
  matrix: jax.Array, method: str = 'zca', **options: Any
) -> jax.Array:
  """Returns W with W S Wᵀ = I by a method of this module, named.

  Args:
    matrix: S, (..., d, d).
    method: 'zca', 'pca', 'cholesky' or 'newton_schulz'.
    **options: Those of the method.

  Returns:
    W, (..., d, d).

  Raises:
    ValueError: Unknown method, or a matrix that is not square.
  """
  if method not in METHODS:
    raise ValueError(
      f'unknown whitening method {method!r}; known: {", ".join(METHODS)}'
    )
  return METHODS[method](matrix, **options)


def zca(matrix: jax.Array) -> jax.Array:
  """Returns S^-½ by eigenvectors, W = U Λ^-½ Uᵀ.

  One eigendecomposition, whatever the order of the derivative: in the basis U
  the equation for the tangent (see `implicit`) is diagonal,

    V = -U (K ∘ UᵀdSU) Uᵀ,    Kᵢⱼ = 1 / (sᵢ sⱼ (sᵢ + sⱼ)),    s = Λ^½.

  Eigenvalues below ε times the largest, which rounding alone decides (and may
  make negative), are taken to be that: a singular S gives a finite W, which
  `residual` tells apart.

  Args:
    matrix: S, (..., d, d).

  Returns:
    W, symmetric, (..., d, d).

  Source: Ionescu, Vantzos and Sminchisescu (2015) and Huang et al. (2018) for
  the layer; Daleckii and Krein (1965) for K.
  """
  matrix = matrices.prepare(matrix)
  values, vectors = eigen.eigh(lax.stop_gradient(matrix))
  half = vectors / jnp.sqrt(jnp.sqrt(values))[..., None, :]
  root = matmul(half, transpose(half))
  factors = (jnp.sqrt(values), vectors)
  return implicit.with_derivative(_solve_by_eigenvectors, matrix, root, factors)


def newton_schulz(
  matrix: jax.Array,
  *,
  num_iterations: int | None = None,
  tolerance: float | None = None,
  normalizer: iteration.Normalizer = 'spectral',
) -> jax.Array:
  """Returns S^-½ by matrix products only, to a tolerance or truncated.

  To a tolerance (the default) the derivative is that of S^-½, by products only
  too: with R X + X R = -dS the tangent is V = W X W. Truncated, it is the
  derivative of the iteration itself. `newton_schulz(s, num_iterations=5,
  normalizer='trace')` is IterNorm.

  Args:
    matrix: S, (..., d, d).
    num_iterations: How many steps of the plain iteration, at least 1; None to
      iterate to the tolerance.
    tolerance: Of ‖W S W - I‖_F; None for 32 ε √d. What rounding does not allow
      is not tried for: see `newton_schulz_with_info`.
    normalizer: What S is divided by: 'spectral', a bound of the largest
      eigenvalue that is at most d^¼ times too large, or 'trace', up to d times.

  Returns:
    W, symmetric, (..., d, d).

  Raises:
    ValueError: Both num_iterations and tolerance, or an option out of range.

  Source: Huang et al., "Iterative Normalization" (2019); Higham, "Functions of
  Matrices" (2008), chapters 5 and 6.
  """
  return _newton_schulz(matrix, num_iterations, tolerance, normalizer)[0]


class Info(NamedTuple):
  """How an iteration ended, matrix by matrix; carries no gradient.

  Attributes:
    num_iterations: Steps taken, int32 (...).
    residual: ‖W S W - I‖_F of the result, (...).
  """

  num_iterations: jax.Array
  residual: jax.Array


def newton_schulz_with_info(
  matrix: jax.Array,
  *,
  num_iterations: int | None = None,
  tolerance: float | None = None,
  normalizer: iteration.Normalizer = 'spectral',
) -> tuple[jax.Array, Info]:
  """Returns the W of `newton_schulz` and how it ended: two more products."""
  root, count = _newton_schulz(matrix, num_iterations, tolerance, normalizer)
  return root, Info(count, lax.stop_gradient(residual(root, matrix)))


def cholesky(matrix: jax.Array) -> jax.Array:
  """Returns L⁻¹ with S = L Lᵀ; depends on the order of the channels.

  NaN where S is not positive definite to rounding. Autodiff is right as it is:
  the derivatives of a Cholesky factor have no singularity inside the cone.

  Args:
    matrix: S, (..., d, d).

  Returns:
    W, lower triangular, (..., d, d).
  """
  factor = lax.linalg.cholesky(matrices.prepare(matrix))
  identity = jnp.broadcast_to(matrices.identity_like(factor), factor.shape)
  return lax.linalg.triangular_solve(
    factor, identity, left_side=True, lower=True
  )


def pca(matrix: jax.Array) -> jax.Array:
  """Returns Λ^-½ Uᵀ: rows by descending eigenvalue, their signs fixed.

  In each row the component of largest size is positive. Even so W is NOT a
  continuous function of S: where two eigenvalues meet their rows change places,
  and where two components of a row tie its sign may flip. Use `zca` to train.

  In float32 the eigenvectors of small eigenvalues are known to no more than
  ε λ_max / λ, which leaves rows correlated by 2e-3 at a condition number of 1e4
  and d = 512; a step of Newton-Schulz, W ← ½ (3 I - W S Wᵀ) W, which changes
  nothing else, takes that to 6e-5.

  The derivative grows as the inverse of the gaps between eigenvalues; pairs
  that are tied to rounding (gap ≤ d ε λ_max) are left out of it, see
  `eigen.principal_axes`.

  Args:
    matrix: S, (..., d, d).

  Returns:
    W, (..., d, d).
  """
  matrix = matrices.prepare(matrix)
  values, vectors = eigen.principal_axes(matrix)
  root = transpose(vectors / jnp.sqrt(values)[..., None, :])
  return matmul(_correction(*lax.stop_gradient((root, matrix))), root)


METHODS: dict[str, Callable[..., jax.Array]] = {
  'zca': zca,
  'pca': pca,
  'cholesky': cholesky,
  'newton_schulz': newton_schulz,
}


def residual(root: jax.Array, matrix: jax.Array) -> jax.Array:
  """How far from white a W leaves S: ‖W S Wᵀ - I‖_F, of shape (...)."""
  white = matmul(matmul(root, matrices.prepare(matrix)), transpose(root))
  return jnp.squeeze(matrices.distance_to_identity(white), (-2, -1))


def _correction(root, matrix):
  """One Newton-Schulz step's factor; I for a singular matrix."""
  white = matmul(matmul(root, matrix), transpose(root))
  identity = matrices.identity_like(matrix)
  close = matrices.distance_to_identity(white) < 1
  return jnp.where(close, (3 * identity - white) / 2, identity)


def _solve_by_eigenvectors(factors, rhs):
  s, vectors = factors
  s, t = s[..., :, None], s[..., None, :]
  return eigen.in_basis(vectors, 1 / (s * t * (s + t)), rhs)


def _solve_by_sign(factors, rhs):
  square_root, root = factors
  inner = lyapunov.solve(square_root, root, rhs)
  return matmul(matmul(root, inner), root)


@partial(jax.jit, static_argnames=('num_iterations', 'tolerance', 'normalizer'))
def _newton_schulz(matrix, num_iterations, tolerance, normalizer):
  """The root and the number of steps, int32 (...)."""
  _check_options(num_iterations, tolerance, normalizer)
  matrix = matrices.prepare(matrix)
  if num_iterations is not None:
    root = iteration.truncated(matrix, num_iterations, normalizer)
    return root, jnp.full(matrix.shape[:-2], num_iterations, jnp.int32)
  constant = lax.stop_gradient(matrix)
  root, count = tag_statistics(
    iteration.to_tolerance(constant, tolerance, normalizer)
  )
  factors = (matrices.symmetrize(matmul(constant, root)), root)
  return implicit.with_derivative(_solve_by_sign, matrix, root, factors), count


def _check_options(num_iterations, tolerance, normalizer) -> None:
  if normalizer not in ('spectral', 'trace'):
    raise ValueError(f"normalizer is 'spectral' or 'trace', not {normalizer!r}")
  if num_iterations is not None and tolerance is not None:
    raise ValueError('give num_iterations or tolerance, not both')
  if num_iterations is not None and num_iterations < 1:
    raise ValueError(f'num_iterations must be 1 or more, not {num_iterations}')
  if tolerance is not None and not tolerance > 0:
    raise ValueError(f'tolerance must be positive, not {tolerance}')
