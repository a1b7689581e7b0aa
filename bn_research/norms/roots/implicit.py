"""Derivatives of matrix functions, by the linear equation that they solve."""

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
  """Solves `operator(V) = rhs` for V, differentiable to any order.

  The tangent V of a matrix function is the solution of a linear equation.
  Only `operator` and `rhs` are differentiated, never `solve`: how the
  equation is solved (by eigenvectors, by an iteration that stops at a
  tolerance) has no say in the derivatives of V.

  Args:
    operator: Linear, self-adjoint and positive definite on symmetric matrices;
      may depend on the arguments of differentiation.
    rhs: Symmetric up to rounding, (..., d, d).
    solve: Its inverse; must depend on constants only (`lax.stop_gradient`).

  Returns:
    V, symmetric, (..., d, d).
  """
  solution = lax.custom_linear_solve(
    operator,
    matrices.symmetrize(rhs),
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
  """Gives W = S^-½, computed in any way, its derivatives.

  With R = S^½, differentiating W S W = I and multiplying by R from both sides
  gives, for V = dW,

    S V R + R V S = -dS,

  whose operator is self-adjoint, with the eigenvalues sᵢ sⱼ (sᵢ + sⱼ) for those
  sᵢ of R: positive, and without differences. Autodiff takes the higher orders
  from S and R = S W.

  Args:
    solve: `(factors, B) -> V` with S V R + R V S = B.
    matrix: S, symmetric positive definite, (..., d, d).
    root: W, computed from `lax.stop_gradient(matrix)`.
    factors: What `solve` needs, computed likewise.

  Returns:
    W.
  """
  del solve, matrix, factors
  return root


@with_derivative.defjvp
def _with_derivative_jvp(solve, primals, tangents):
  matrix, _, factors = primals
  root = with_derivative(solve, *primals)
  square_root = matrices.symmetrize(matmul(matrix, root))

  def operator(v):
    half = matmul(matmul(matrix, v), square_root)
    return half + transpose(half)

  constants = lax.stop_gradient(factors)
  return root, tangent(operator, -tangents[0], partial(solve, constants))
