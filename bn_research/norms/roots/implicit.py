"""Derivatives of matrix functions, from linear equations for the tangents."""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax

from bn_research.norms.roots import matrices
from bn_research.norms.roots.matrices import matmul, transpose


def tangent(
  operator: Callable[[jax.Array], jax.Array],
  rhs: jax.Array,
  solve: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """Solves a linear equation for the tangent V, with all derivatives of V.

    operator(V) = rhs

  The tangent V of a matrix function is the solution of a linear equation.
  Autodiff differentiates `operator` and `rhs`, and never `solve`. The method of
  `solve` (by eigenvectors, or by an iteration to a tolerance) does not enter
  the derivatives of V.

  Args:
    operator: A linear map of symmetric matrices (..., d, d), self-adjoint and
      positive definite. The map may depend on differentiated arrays.
    rhs: A matrix, symmetric up to rounding errors, (..., d, d), float32 or
      float64.
    solve: The inverse of `operator`. The inverse must depend on constants only
      (see `lax.stop_gradient`).

  Returns:
    V, (..., d, d), symmetric, of the same dtype.
  """
  solution = lax.custom_linear_solve(
    operator,
    matrices.symmetrize(rhs),
    # Autodiff calls `solve` with cotangents, too, and a cotangent need not be
    # symmetric.
    lambda _, b: solve(matrices.symmetrize(b)),
    symmetric=True,
  )
  return matrices.symmetrize(solution)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def with_derivative(
  solve: Callable[[tuple, jax.Array], jax.Array],
  matrix: jax.Array,
  root: jax.Array,
  factors: tuple,
) -> jax.Array:
  """Returns W = S^-½ unchanged, and attaches the derivatives of W.

    S V R + R V S = -dS,    V = dW,    R = S^½

  The equation is the derivative of W S W = I, multiplied by R from both sides.
  Let sᵢ be the eigenvalues of R. The operator is self-adjoint, with the
  eigenvalues sᵢ sⱼ (sᵢ + sⱼ). The eigenvalues are positive and contain no
  differences, so that ties do no harm. Autodiff derives the higher orders from
  S and R = S W.

  Args:
    solve: A function `(factors, B) -> V` with S V R + R V S = B.
    matrix: S, (..., d, d), symmetric positive definite, float32 or float64.
    root: W, (..., d, d), computed from `lax.stop_gradient(matrix)`.
    factors: The arrays for `solve`, computed from `lax.stop_gradient(matrix)`.

  Returns:
    W, (..., d, d), with the derivatives of S^-½.
  """
  del solve, matrix, factors
  return root


@with_derivative.defjvp
def _with_derivative_jvp(solve, primals, tangents):
  matrix, _, factors = primals
  root = with_derivative(solve, *primals)
  # R must be a function of S and W here, and not a constant from `factors`:
  # otherwise the second derivative lacks the terms with dR.
  square_root = matrices.symmetrize(matmul(matrix, root))

  def operator(v):
    half = matmul(matmul(matrix, v), square_root)
    return half + transpose(half)

  constants = lax.stop_gradient(factors)
  return root, tangent(operator, -tangents[0], partial(solve, constants))
