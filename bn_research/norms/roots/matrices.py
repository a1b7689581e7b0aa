"""Operations on symmetric matrices, batched over leading axes.

Every product runs at the highest precision, and the default precision of the
process has no influence. A root with the precision of bfloat16 is too coarse to
whiten a covariance.
"""

import jax
import jax.numpy as jnp
from jax import lax


def prepare(matrix: jax.typing.ArrayLike) -> jax.Array:
  """Casts matrices to float32 or wider and returns the symmetric part.

    (A + Aᵀ) / 2

  The cotangent of the argument is symmetric, too.

  Args:
    matrix: A, (..., d, d), real, of any dtype.

  Returns:
    The symmetric part, (..., d, d). The dtype is float32, or float64 for a
    float64 argument.

  Raises:
    ValueError: The shape is not (..., d, d).
    TypeError: The dtype is complex.
  """
  matrix = jnp.asarray(matrix)
  if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
    raise ValueError(f'matrices must be (..., d, d), not {matrix.shape}')
  if jnp.iscomplexobj(matrix):
    raise TypeError(f'matrices must be real, not {matrix.dtype}')
  # `jnp.promote_types` fails if the user has forbidden silent promotion.
  is_narrow = matrix.dtype.itemsize < 4 or not jnp.issubdtype(
    matrix.dtype, jnp.floating
  )
  dtype = jnp.dtype('float32') if is_narrow else matrix.dtype
  return symmetrize(matrix.astype(dtype))


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns A B, the product of two matrices, at the highest precision.

  Args:
    a: A, (..., n, k).
    b: B, (..., k, m), of the same dtype.

  Returns:
    A B, (..., n, m), of the same dtype.
  """
  # The default precision of an accelerator is bfloat16 or TF32, which would
  # limit the root to about three digits.
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def transpose(matrix: jax.Array) -> jax.Array:
  """Returns Aᵀ: the last two axes of (..., n, m) are swapped."""
  return jnp.swapaxes(matrix, -1, -2)


def symmetrize(matrix: jax.Array) -> jax.Array:
  """Returns the symmetric part (A + Aᵀ) / 2 of (..., d, d)."""
  return (matrix + transpose(matrix)) / 2


def trace(matrix: jax.Array) -> jax.Array:
  """Returns the trace of (..., d, d), with the shape (..., 1, 1)."""
  return jnp.trace(matrix, axis1=-2, axis2=-1)[..., None, None]


def frobenius_norm(matrix: jax.Array) -> jax.Array:
  """Returns (Σᵢⱼ aᵢⱼ²)^½ of (..., d, d), with the shape (..., 1, 1)."""
  return jnp.linalg.norm(matrix, axis=(-2, -1), keepdims=True)


def identity_like(matrix: jax.Array) -> jax.Array:
  """Returns the identity (1, ..., d, d) for (..., d, d), of the same dtype."""
  size = matrix.shape[-1]
  identity = jnp.eye(size, dtype=matrix.dtype)
  # As many axes as the matrix: JAX may be told to refuse to add axes.
  return identity.reshape((1,) * (matrix.ndim - 2) + (size, size))


def distance_to_identity(matrix: jax.Array) -> jax.Array:
  """Returns ‖A - I‖_F of (..., d, d), with the shape (..., 1, 1)."""
  return frobenius_norm(matrix - identity_like(matrix))


def squared_and_bounded(
  matrix: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Scales a positive semi-definite matrix: eigenvalues are then at most 1.

  With t = tr(A), the divisor is

    c = t · ‖(A / t)²‖_F^½ = (Σ λᵢ⁴)^¼.

  The divisor c is at least the largest eigenvalue, and at most d^¼ times the
  largest eigenvalue. The trace may be d times too large. The function computes
  a single product and returns the product, because iterations begin with the
  square.

  Args:
    matrix: A, (..., d, d), positive semi-definite with a positive trace.

  Returns:
    A / c and (A / c)², both (..., d, d), and c, (..., 1, 1).
  """
  size = trace(matrix)
  # Fourth powers of the entries overflow early. After the division by the trace
  # all entries are at most 1.
  scaled = matrix / size
  square = matmul(scaled, scaled)
  bound = jnp.sqrt(frobenius_norm(square))
  return scaled / bound, square / bound**2, size * bound


def spectral_bound(matrix: jax.Array) -> jax.Array:
  """Returns only c = (Σ λᵢ⁴)^¼ of `squared_and_bounded`, (..., 1, 1)."""
  return squared_and_bounded(matrix)[2]
