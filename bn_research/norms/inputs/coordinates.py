"""A dense layer in whitened coordinates of the input.

    z = (x - c) U V + d

equals the layer z = x K + b with K = U V and b = d - c K, for any c and any
invertible U. The outputs of the layer are the same in all coordinates. The
gradient depends on the coordinates: a step of gradient descent on V and d
changes K and b by

    ΔK = -η P (g_K - c g_bᵀ),    Δb = -η g_b - c ΔK,    P = U Uᵀ.

If U whitens x, the inverse covariance of x preconditions the descent.

Source: Desjardins et al., "Natural Neural Networks" (2015), Algorithm 1. The
sign of c K in the algorithm must be minus. The paper has no momentum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bn_research.norms.roots.matrices import matmul, transpose


class Coordinates(NamedTuple):
  """The coordinates h = (x - mean) @ basis of an input x.

  Attributes:
    mean: c, (d,).
    basis: U, (d, d), invertible.
  """

  mean: jax.Array
  basis: jax.Array


class Affine(NamedTuple):
  """The weights of z = h @ kernel + bias, or a gradient of the weights.

  Attributes:
    kernel: V, (d, m).
    bias: d, (m,). A layer without a bias has None, and coordinates with mean 0.
  """

  kernel: jax.Array
  bias: jax.Array | None


def canonical(size: int) -> Coordinates:
  """Returns the coordinates with h = x.

  Args:
    size: The number d of components of x.

  Returns:
    c = 0, (d,), and U = I, (d, d), of the default float dtype.
  """
  return Coordinates(jnp.zeros(size), jnp.eye(size))


def move(layer: Affine, old: Coordinates, new: Coordinates) -> Affine:
  """Writes a layer in new coordinates, with the same outputs.

    V' = U'⁻¹ U V,    d' = d + (c' - c) U V

  The outputs change only by the rounding errors of V', and U' amplifies the
  errors. For U = S^-½ the change is at most about ε √(d cond(S)), relative to
  the largest output. Measured in float32, for inputs with a condition number of
  1e6, and S with λ times the mean variance added:

    λ       with a bias     c = 0 (no bias) and a large mean
    1e-3    3e-7            2e-6
    1e-6    1e-6            5e-5

  Args:
    layer: V, (d, m), and d, (m,) or None, in the old coordinates.
    old: c, (d,), and U, (d, d).
    new: c', (d,), and U', (d, d).

  Returns:
    V', (d, m), and d', (m,) or None, of the dtype of the arguments.
  """
  kernel = matmul(old.basis, layer.kernel)
  bias = layer.bias
  if bias is not None:
    bias = bias + matmul(new.mean - old.mean, kernel)
  # To solve is more precise than to multiply by a rounded inverse of U'.
  return Affine(jnp.linalg.solve(new.basis, kernel), bias)


def carry(covector: Affine, old: Coordinates, new: Coordinates) -> Affine:
  """Writes a gradient, or a sum of gradients, in new coordinates.

    m_V' = U'ᵀ (U⁻ᵀ m_V + (c - c') m_dᵀ),    m_d' = m_d

  Args:
    covector: m_V, (d, m), and m_d, (m,) or None: gradients with respect to V
      and d, or the momentum.
    old: c, (d,), and U, (d, d).
    new: c', (d,), and U', (d, d).

  Returns:
    m_V', (d, m), and m_d', (m,) or None, of the dtype of the arguments.
  """
  # A gradient is a covector: the matrices are the inverse transposes of the
  # matrices in `move`, so that inner products with changes of the layer stay.
  kernel = jnp.linalg.solve(transpose(old.basis), covector.kernel)
  if covector.bias is not None:
    kernel = kernel + jnp.outer(old.mean - new.mean, covector.bias)
  return Affine(matmul(transpose(new.basis), kernel), covector.bias)


def second_moments(
  mean: jax.Array, covariance: jax.Array, has_bias: bool
) -> tuple[jax.Array, jax.Array]:
  """Returns the centre c of the coordinates, and the second moments about c.

    with a bias:       c = μ,    E[(x - μ)(x - μ)ᵀ] = Σ
    without a bias:    c = 0,    E[x xᵀ] = Σ + μ μᵀ

  Args:
    mean: μ, (d,).
    covariance: Σ, (..., d, d), or the variances, (..., d).
    has_bias: Whether the layer has a bias.

  Returns:
    c, (d,), and the moments, of the shape of `covariance`.
  """
  if has_bias:
    return mean, covariance
  # Centring shifts the outputs by -c K, and only a bias can undo the shift.
  is_matrix = covariance.ndim > mean.ndim
  square = jnp.outer(mean, mean) if is_matrix else mean * mean
  return jnp.zeros_like(mean), covariance + square
