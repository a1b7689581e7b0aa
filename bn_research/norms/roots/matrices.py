"""Symmetric matrices, batched over leading axes: the few operations we need.

Every product runs at the highest precision, whatever the process's default is:
a root that is right to bfloat16 only whitens nothing.
"""

import jax
import jax.numpy as jnp
from jax import lax


def prepare(matrix: jax.typing.ArrayLike) -> jax.Array:
  """Casts to float32 at least and symmetrizes, cotangents included.

  Raises:
    ValueError: Not (..., d, d).
    TypeError: Complex.
  """
  matrix = jnp.asarray(matrix)
  if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
    raise ValueError(f'matrices must be (..., d, d), not {matrix.shape}')
  if jnp.iscomplexobj(matrix):
    raise TypeError(f'matrices must be real, not {matrix.dtype}')
  dtype = jnp.promote_types(matrix.dtype, jnp.float32)
  return symmetrize(matrix.astype(dtype))


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """The product of two matrices (..., n, k) and (..., k, m)."""
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def transpose(matrix: jax.Array) -> jax.Array:
  """Swaps the last two axes."""
  return jnp.swapaxes(matrix, -1, -2)


def symmetrize(matrix: jax.Array) -> jax.Array:
  """The symmetric part, (A + Aᵀ) / 2."""
  return (matrix + transpose(matrix)) / 2


def trace(matrix: jax.Array) -> jax.Array:
  """The trace, (..., 1, 1)."""
  return jnp.trace(matrix, axis1=-2, axis2=-1)[..., None, None]


def frobenius_norm(matrix: jax.Array) -> jax.Array:
  """The square root of the sum of squared entries, (..., 1, 1)."""
  return jnp.linalg.norm(matrix, axis=(-2, -1), keepdims=True)


def identity_like(matrix: jax.Array) -> jax.Array:
  """The identity (d, d) of the size and type of `matrix`."""
  return jnp.eye(matrix.shape[-1], dtype=matrix.dtype)


def distance_to_identity(matrix: jax.Array) -> jax.Array:
  """The Frobenius norm of A - I, (..., 1, 1)."""
  return frobenius_norm(matrix - identity_like(matrix))


def squared_and_bounded(
  matrix: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Scales a positive semi-definite matrix into the unit interval.

  With t = tr(A), the bound is t · ‖(A / t)²‖_F^½ = (Σ λᵢ⁴)^¼: never below the
  largest eigenvalue, at most d^¼ above it, where the trace may be d times too
  large. It costs one product, which is returned because iterations start
  with it; the division by the trace keeps it from overflow.

  Args:
    matrix: Positive semi-definite, (..., d, d), its trace positive.

  Returns:
    A / c and (A / c)², both (..., d, d), and the bound c, (..., 1, 1).
  """
  size = trace(matrix)
  scaled = matrix / size
  square = matmul(scaled, scaled)
  bound = jnp.sqrt(frobenius_norm(square))
  return scaled / bound, square / bound**2, size * bound


def spectral_bound(matrix: jax.Array) -> jax.Array:
  """The bound alone of `squared_and_bounded`, (..., 1, 1)."""
  return squared_and_bounded(matrix)[2]
