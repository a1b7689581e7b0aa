"""Eigenvalues and eigenvectors of covariances, with derivatives."""

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.roots import implicit, matrices
from bn_research.norms.roots.matrices import matmul, transpose
from bn_research.norms.roots.tags import tag_statistics


def eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Decomposes a covariance, with eigenvalues of at least ε λ_max.

    S = U Λ Uᵀ,    λᵢ ← max(λᵢ, ε λ_max)

  Rounding errors decide a smaller eigenvalue and may make the sign negative.

  Args:
    matrix: S, (..., d, d), symmetric, positive semi-definite, float32 or
      float64.

  Returns:
    The eigenvalues, ascending, (..., d), and the eigenvectors in the columns of
    U, (..., d, d), of the same dtype.
  """
  values, vectors = _decomposed(matrix)
  least = jnp.finfo(values.dtype).eps * values[..., -1:]
  return jnp.maximum(values, least), vectors


def _decomposed(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  vectors, values = lax.linalg.eigh(matrix, symmetrize_input=False)
  return tag_statistics((values, vectors))


def in_basis(
  vectors: jax.Array, factors: jax.Array, matrix: jax.Array
) -> jax.Array:
  """Multiplies a matrix entry by entry in an orthonormal basis.

    U (F ∘ UᵀAU) Uᵀ

  Args:
    vectors: U, (..., d, d), with the vectors of the basis in the columns.
    factors: F, (..., d, d), of the same dtype.
    matrix: A, (..., d, d), of the same dtype.

  Returns:
    The product, (..., d, d), of the same dtype.
  """
  inner = matmul(matmul(transpose(vectors), matrix), vectors)
  return matmul(matmul(vectors, factors * inner), transpose(vectors))


@jax.custom_jvp
def principal_axes(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Decomposes a covariance, with descending eigenvalues and fixed signs.

    S = U Λ Uᵀ,    dλⱼ = uⱼᵀdSuⱼ,    duⱼ = Σᵢ uᵢ uᵢᵀdSuⱼ / (λⱼ - λᵢ)

  In each eigenvector the component of largest size is positive. The sum runs
  over each i with |λⱼ - λᵢ| > d ε λ_max. A smaller gap is a tie: the
  eigenvectors of a tie have no derivative, and the function puts zero in the
  place of the term.

  Args:
    matrix: S, (..., d, d), symmetric, positive semi-definite, float32 or
      float64.

  Returns:
    The eigenvalues, (..., d), and the eigenvectors in the columns of U,
    (..., d, d), of the same dtype.
  """
  values, vectors = (jnp.flip(part, -1) for part in eigh(matrix))
  largest = jnp.argmax(jnp.abs(vectors), axis=-2, keepdims=True)
  largest = jnp.take_along_axis(vectors, largest, axis=-2)
  return values, vectors * jnp.where(largest < 0, -1, 1)


@principal_axes.defjvp
def _principal_axes_jvp(primals, tangents):
  values, vectors = tag_statistics(principal_axes(*primals))
  inner = matmul(matmul(transpose(vectors), tangents[0]), vectors)
  gaps = values[..., None, :] - values[..., :, None]
  least = values.shape[-1] * jnp.finfo(values.dtype).eps * values[..., :1]
  tied = jnp.abs(gaps) <= least[..., None]
  # The inner selection keeps NaN out of the derivatives of the quotient.
  rotation = jnp.where(tied, 0, inner / jnp.where(tied, 1, gaps))
  dvalues = jnp.diagonal(inner, axis1=-2, axis2=-1)
  return (values, vectors), (dvalues, matmul(vectors, rotation))


def floor_spectrum(matrix: jax.Array, least: jax.typing.ArrayLike) -> jax.Array:
  """Raises the eigenvalues λ of a covariance S to max(λ, c).

    max(S, c) = (S + c I + |S - c I|) / 2

  The matrix absolute value has derivatives of every order, unless an eigenvalue
  equals c. For H = |A|, the derivative of H² = A² is

    H dH + dH H = A dA + dA A.

  The equation contains no differences of eigenvalues. The function is
  differentiable in S and in c. An eigenvalue equal to c counts half as raised
  and half as not raised.

  Args:
    matrix: S, (..., d, d), symmetric, positive semi-definite to rounding, of
      any real dtype.
    least: c, (..., 1, 1) or a number. Rounding errors hide a floor below about
      d ε λ_max.

  Returns:
    The floored matrix, (..., d, d), float32 or float64.

  Raises:
    ValueError: The shape of `matrix` is not (..., d, d).
    TypeError: The dtype of `matrix` is complex.
  """
  matrix = matrices.prepare(matrix)
  level = least * matrices.identity_like(matrix)
  apart = matrix - level
  # The derivatives come from `_absolute`. The derivatives of eigenvectors would
  # divide by differences of eigenvalues.
  values, vectors = _decomposed(lax.stop_gradient(apart))
  values = jnp.abs(values)
  size = matmul(vectors * values[..., None, :], transpose(vectors))
  return level + (apart + _absolute(apart, size, values, vectors)) / 2


@jax.custom_jvp
def _absolute(matrix, size, values, vectors):
  """Returns `size` = |matrix| unchanged, and attaches the derivatives."""
  del matrix, values, vectors
  return size


@_absolute.defjvp
def _absolute_jvp(primals, tangents):
  matrix, _, values, vectors = primals
  size = _absolute(*primals)
  values, vectors = lax.stop_gradient((values, vectors))

  def operator(v):
    half = matmul(size, v)
    return half + transpose(half)

  def solve(rhs):
    # The sum of two absolute eigenvalues is zero if both eigenvalues equal the
    # floor. The right side is zero, too, and zero is a solution.
    sums = values[..., :, None] + values[..., None, :]
    inverse = jnp.where(sums > 0, 1 / jnp.where(sums > 0, sums, 1), 0)
    return in_basis(vectors, inverse, rhs)

  half = matmul(matrix, tangents[0])
  rhs = half + transpose(half)
  return size, implicit.tangent(operator, rhs, solve)
