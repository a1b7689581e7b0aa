"""Eigenvectors of covariances, and a floor under the spectrum."""

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.roots import implicit, matrices
from bn_research.norms.roots.matrices import matmul, transpose
from bn_research.norms.roots.tags import tag_statistics


def eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Eigenvalues of a covariance, at least ε times the largest.

  Below that rounding alone decides, and may make them negative.

  Args:
    matrix: Symmetric, positive semi-definite, (..., d, d).

  Returns:
    Eigenvalues, ascending, (..., d); eigenvectors, in columns, (..., d, d).
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
  """Multiplies by `factors`, entry by entry, in an orthonormal basis.

  Args:
    vectors: The basis, in columns U, (..., d, d).
    factors: F, (..., d, d).
    matrix: A, (..., d, d).

  Returns:
    U (F ∘ UᵀAU) Uᵀ.
  """
  inner = matmul(matmul(transpose(vectors), matrix), vectors)
  return matmul(matmul(vectors, factors * inner), transpose(vectors))


@jax.custom_jvp
def principal_axes(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Eigenvalues, descending, and eigenvectors with fixed signs.

  In each eigenvector the component of largest size is positive. The derivative
  of the eigenvectors is Σᵢ uᵢ uᵢᵀdSuⱼ / (λⱼ - λᵢ) over the i that are not tied
  with j to rounding: inside a tied space there is no derivative, and zero is
  put in its place.

  Args:
    matrix: Symmetric, positive semi-definite, (..., d, d).

  Returns:
    Eigenvalues (..., d); eigenvectors, in columns, (..., d, d).
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
  rotation = jnp.where(tied, 0, inner / jnp.where(tied, 1, gaps))
  dvalues = jnp.diagonal(inner, axis1=-2, axis2=-1)
  return (values, vectors), (dvalues, matmul(vectors, rotation))


def floor_spectrum(matrix: jax.Array, least: jax.typing.ArrayLike) -> jax.Array:
  """Raises the eigenvalues λ of S to max(λ, c).

  Written with the matrix absolute value, max(S, c) = (S + c I + |S - c I|) / 2,
  which has a derivative of every order wherever no eigenvalue sits on c: for
  H = |A|, from H² = A²,

    H dH + dH H = A dA + dA A.

  No differences of eigenvalues, and c is differentiated too. Where an
  eigenvalue does sit on c, it counts as raised and as not raised with weight
  one half.

  Args:
    matrix: S, symmetric, positive semi-definite to rounding, (..., d, d).
    least: c, (..., 1, 1) or a number; below about d ε of the largest
      eigenvalue rounding hides it.

  Returns:
    The floored matrix, (..., d, d), in float32 at least.
  """
  matrix = matrices.prepare(matrix)
  level = least * matrices.identity_like(matrix)
  apart = matrix - level
  values, vectors = _decomposed(lax.stop_gradient(apart))
  values = jnp.abs(values)
  size = matmul(vectors * values[..., None, :], transpose(vectors))
  return level + (apart + _absolute(apart, size, values, vectors)) / 2


@jax.custom_jvp
def _absolute(matrix, size, values, vectors):
  """Gives `size` = |matrix|, computed by eigenvectors, its derivatives."""
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
    sums = values[..., :, None] + values[..., None, :]
    inverse = jnp.where(sums > 0, 1 / jnp.where(sums > 0, sums, 1), 0)
    return in_basis(vectors, inverse, rhs)

  half = matmul(matrix, tangents[0])
  rhs = half + transpose(half)
  return size, implicit.tangent(operator, rhs, solve)
