"""A dense layer written in whitened coordinates of its input.

    z = (x - c) U V + d

is the layer z = x K + b with K = U V and b = d - c K, for any c and any
invertible U. The layer computes the same in all coordinates; its gradient does
not. A step of gradient descent on V and d is, of K and b,

    ΔK = -η P (g_K - c g_bᵀ),    Δb = -η g_b - c ΔK,    P = U Uᵀ,

descent preconditioned by the inverse covariance of x where U whitens x.

Source: Desjardins et al., "Natural Neural Networks" (2015), Algorithm 1, where
the sign of c K must be minus; the momentum is not in the paper.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bn_research.norms.roots.matrices import matmul, transpose


class Coordinates(NamedTuple):
  """h = (x - mean) @ basis.

  Attributes:
    mean: c, (d,).
    basis: U, (d, d), invertible.
  """

  mean: jax.Array
  basis: jax.Array


class Affine(NamedTuple):
  """The weights of z = h @ kernel + bias, or what is dual to them.

  Attributes:
    kernel: (d, m).
    bias: (m,); None for a layer without, whose coordinates have mean 0.
  """

  kernel: jax.Array
  bias: jax.Array | None


def canonical(size: int) -> Coordinates:
  """Returns the coordinates in which h is x itself, of `size` numbers."""
  return Coordinates(jnp.zeros(size), jnp.eye(size))


def move(layer: Affine, old: Coordinates, new: Coordinates) -> Affine:
  """Writes a layer in new coordinates; it computes the same.

    V' = U'⁻¹ U V,    d' = d + (c' - c) U V

  What the layer computes changes by the rounding of V', which U' enlarges: at
  most by about ε √(d cond(S)) for U = S^-½, relative to the largest output. In
  float32, for inputs of condition 1e6 and λ times the mean variance added to S,
  we saw 3e-7 at λ = 1e-3 and 1e-6 at λ = 1e-6; where c = 0 for want of a bias,
  and the mean is large, 2e-6 and 5e-5.

  Args:
    layer: V and d.
    old: The coordinates that `layer` is written in.
    new: Those to write it in.

  Returns:
    V' and d'.
  """
  kernel = matmul(old.basis, layer.kernel)
  bias = layer.bias
  if bias is not None:
    bias = bias + matmul(new.mean - old.mean, kernel)
  return Affine(jnp.linalg.solve(new.basis, kernel), bias)


def carry(covector: Affine, old: Coordinates, new: Coordinates) -> Affine:
  """Writes a gradient, or a sum of gradients, in new coordinates.

    m_V' = U'ᵀ (U⁻ᵀ m_V + (c - c') m_dᵀ),    m_d' = m_d

  Args:
    covector: m_V and m_d: gradients with respect to V and d, or momentum.
    old: The coordinates that `covector` is written in.
    new: Those to write it in.

  Returns:
    m_V' and m_d'.
  """
  kernel = jnp.linalg.solve(transpose(old.basis), covector.kernel)
  if covector.bias is not None:
    kernel = kernel + jnp.outer(old.mean - new.mean, covector.bias)
  return Affine(matmul(transpose(new.basis), kernel), covector.bias)


def second_moments(
  mean: jax.Array, covariance: jax.Array, has_bias: bool
) -> tuple[jax.Array, jax.Array]:
  """Returns the centre c and the moments about it that a layer is to use.

  Only a bias can take up what centring changes; without one, the moments about
  zero are those that whiten.

  Args:
    mean: (d,).
    covariance: (..., d, d), or variances (..., d).
    has_bias: Whether the layer has a bias.

  Returns:
    c, (d,), and moments of the shape of `covariance`.
  """
  if has_bias:
    return mean, covariance
  is_matrix = covariance.ndim > mean.ndim
  square = jnp.outer(mean, mean) if is_matrix else mean * mean
  return jnp.zeros_like(mean), covariance + square
