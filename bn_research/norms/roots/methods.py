"""Inverse square roots of symmetric positive definite matrices.

For a covariance S each function returns a W with

  W S Wᵀ = I.

Then y = W x is white for a column x, and y = x @ Wᵀ is white for rows. The
solutions differ by a rotation:

  zca, newton_schulz   W = S^-½, symmetric: y is as close to x as possible
  cholesky             W = L⁻¹ with S = L Lᵀ, lower triangular
  pca                  W = Λ^-½ Uᵀ with S = U Λ Uᵀ

All functions accept leading batch axes, compute in float32 or float64, and have
derivatives of every order in both modes. The derivatives of S^-½ contain no
difference of eigenvalues (see `implicit`). The derivatives are right at the
identity and at ties.

The matrices must be finite and positive definite to rounding, with a positive
trace. NaN gives NaN, and every loop has a bound on the number of steps.
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
  """Computes an inverse square root by the method of the given name.

    W S Wᵀ = I

  Args:
    matrix: S, (..., d, d), real, of any dtype.
    method: 'zca', 'pca', 'cholesky' or 'newton_schulz'.
    **options: The keyword arguments of the method.

  Returns:
    W, (..., d, d), float32 or float64.

  Raises:
    ValueError: The name of the method is unknown, or the shape is not
      (..., d, d).
    TypeError: The dtype is complex.
  """
  if method not in METHODS:
    raise ValueError(
      f'unknown whitening method {method!r}; known: {", ".join(METHODS)}'
    )
  return METHODS[method](matrix, **options)


def zca(matrix: jax.Array) -> jax.Array:
  """Computes S^-½ by an eigendecomposition.

    W = U Λ^-½ Uᵀ,    S = U Λ Uᵀ

  In the basis U the equation for the tangent V = dW (see `implicit`) is
  diagonal:

    V = -U (K ∘ UᵀdSU) Uᵀ,    Kᵢⱼ = 1 / (sᵢ sⱼ (sᵢ + sⱼ)),    s = Λ^½.

  A single eigendecomposition suffices for derivatives of every order.

  An eigenvalue below ε λ_max consists of rounding errors and may be negative.
  The function raises the eigenvalue to ε λ_max. A singular S gives a finite W,
  and `residual` is then large.

  Args:
    matrix: S, (..., d, d), real, of any dtype.

  Returns:
    W, (..., d, d), symmetric, float32 or float64.

  Raises:
    ValueError: The shape is not (..., d, d).
    TypeError: The dtype is complex.

  Source: Ionescu, Vantzos and Sminchisescu (2015) and Huang et al. (2018) for
  the layer; Daleckii and Krein (1965) for K.
  """
  matrix = matrices.prepare(matrix)
  values, vectors = eigen.eigh(lax.stop_gradient(matrix))
  # Both factors of H Hᵀ carry the same rounding errors. (U Λ^-½) Uᵀ would lose
  # the symmetry.
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
  """Computes S^-½ by matrix products only.

    Z ← (α I + β Z Y) Z,    Y ← Y (α I + β Z Y),    Z → S^-½

  The function iterates to a tolerance by default. The derivative is the
  derivative of S^-½, by products only: R X + X R = -dS gives the tangent
  V = W X W, with R = S^½.

  With `num_iterations` the function does a fixed number of plain steps, and
  the derivative is the derivative of the steps. IterNorm is
  `newton_schulz(s, num_iterations=5, normalizer='trace')`.

  For a singular S, ‖W S W - I‖_F stays near √d or below: see
  `iteration.to_tolerance`.

  Args:
    matrix: S, (..., d, d), real, of any dtype.
    num_iterations: The number of plain steps, 1 or more. None means to iterate
      to the tolerance.
    tolerance: The tolerance of ‖W S W - I‖_F. None means 32 ε √d. The iteration
      stops early if rounding errors prevent the tolerance, and
      `newton_schulz_with_info` returns the residual.
    normalizer: The divisor of S. 'spectral' divides by a bound of the largest
      eigenvalue, at most d^¼ times too large. 'trace' divides by the trace, up
      to d times too large.

  Returns:
    W, (..., d, d), symmetric, float32 or float64.

  Raises:
    ValueError: Both `num_iterations` and `tolerance` are given, an option is
      out of range, or the shape is not (..., d, d).
    TypeError: The dtype is complex.

  Source: Huang et al., "Iterative Normalization" (2019); Higham, "Functions of
  Matrices" (2008), chapters 5 and 6.
  """
  return _newton_schulz(matrix, num_iterations, tolerance, normalizer)[0]


class Info(NamedTuple):
  """The end of an iteration, for each matrix of a batch, without gradient.

  Attributes:
    num_iterations: The number of steps, (...), int32.
    residual: ‖W S W - I‖_F of the result, (...), float32 or float64.
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
  """Computes S^-½ by `newton_schulz`, and reports the end of the iteration.

    ‖W S W - I‖_F is the reported residual.

  The residual takes two additional products.

  Args:
    matrix: S, (..., d, d), real, of any dtype.
    num_iterations: The number of plain steps: see `newton_schulz`.
    tolerance: The tolerance of ‖W S W - I‖_F: see `newton_schulz`.
    normalizer: The divisor of S: see `newton_schulz`.

  Returns:
    W, (..., d, d), symmetric, float32 or float64, and an `Info`.

  Raises:
    ValueError: See `newton_schulz`.
    TypeError: The dtype is complex.
  """
  root, count = _newton_schulz(matrix, num_iterations, tolerance, normalizer)
  return root, Info(count, lax.stop_gradient(residual(root, matrix)))


def cholesky(matrix: jax.Array) -> jax.Array:
  """Computes the inverse of the lower Cholesky factor of S.

    W = L⁻¹,    S = L Lᵀ

  W depends on the order of the channels. If S is not positive definite to
  rounding, W is NaN.

  Args:
    matrix: S, (..., d, d), real, of any dtype.

  Returns:
    W, (..., d, d), lower triangular, float32 or float64.

  Raises:
    ValueError: The shape is not (..., d, d).
    TypeError: The dtype is complex.
  """
  # Plain autodiff suffices: the derivatives of a Cholesky factor have no
  # singularity for a positive definite S.
  factor = lax.linalg.cholesky(matrices.prepare(matrix))
  identity = jnp.broadcast_to(matrices.identity_like(factor), factor.shape)
  return lax.linalg.triangular_solve(
    factor, identity, left_side=True, lower=True
  )


def pca(matrix: jax.Array) -> jax.Array:
  """Computes the root whose rows are scaled eigenvectors of S.

    W = Λ^-½ Uᵀ,    S = U Λ Uᵀ

  The eigenvalues descend. In each row the component of largest size is
  positive. W is NOT a continuous function of S. If two eigenvalues cross, two
  rows change places. If the two largest components of a row tie, the sign of
  the row may flip. Use `zca` to train.

  The derivative grows as the inverse of the gaps between eigenvalues. The
  derivative leaves out each pair with a gap of at most d ε λ_max: see
  `eigen.principal_axes`.

  In float32 the error of the eigenvector of an eigenvalue λ is about
  ε λ_max / λ. At a condition number of 1e4 and d = 512 the rows of Λ^-½ Uᵀ have
  a correlation of 2e-3. A Newton-Schulz step, W ← ½ (3 I - W S Wᵀ) W, reduces
  the correlation to 6e-5 and changes nothing else.

  Args:
    matrix: S, (..., d, d), real, of any dtype.

  Returns:
    W, (..., d, d), float32 or float64.

  Raises:
    ValueError: The shape is not (..., d, d).
    TypeError: The dtype is complex.
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
  """Computes the distance of W S Wᵀ from the identity.

    ‖W S Wᵀ - I‖_F

  Args:
    root: W, (..., d, d), float32 or float64.
    matrix: S, (..., d, d), real, of any dtype.

  Returns:
    The Frobenius norm, (...), float32 or float64.

  Raises:
    ValueError: The shape of `matrix` is not (..., d, d).
    TypeError: The dtype of `matrix` is complex.
  """
  white = matmul(matmul(root, matrices.prepare(matrix)), transpose(root))
  return jnp.squeeze(matrices.distance_to_identity(white), (-2, -1))


def _correction(root, matrix):
  """Returns the factor ½ (3 I - W S Wᵀ), or I for a singular matrix."""
  white = matmul(matmul(root, matrix), transpose(root))
  identity = matrices.identity_like(matrix)
  # A Newton-Schulz step converges only from a residual below 1.
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
  """Returns W, (..., d, d), and the number of steps, int32 (...)."""
  _check_options(num_iterations, tolerance, normalizer)
  matrix = matrices.prepare(matrix)
  if num_iterations is not None:
    root = iteration.truncated(matrix, num_iterations, normalizer)
    return root, jnp.full(matrix.shape[:-2], num_iterations, jnp.int32)
  constant = lax.stop_gradient(matrix)
  # The derivatives need the root. A checkpoint policy saves tagged arrays, so
  # that the backward pass does not repeat the iteration.
  root, count = tag_statistics(
    iteration.to_tolerance(constant, tolerance, normalizer)
  )
  factors = (matrices.symmetrize(matmul(constant, root)), root)
  return implicit.with_derivative(_solve_by_sign, matrix, root, factors), count


def _check_options(num_iterations, tolerance, normalizer) -> None:
  if normalizer not in ('spectral', 'trace'):
    raise ValueError(
      f"normalizer must be 'spectral' or 'trace', not {normalizer!r}"
    )
  if num_iterations is not None and tolerance is not None:
    raise ValueError(
      'num_iterations and tolerance are given: give one, not both'
    )
  if num_iterations is not None and num_iterations < 1:
    raise ValueError(f'num_iterations must be 1 or more, not {num_iterations}')
  if tolerance is not None and not tolerance > 0:
    raise ValueError(f'tolerance must be positive, not {tolerance}')
