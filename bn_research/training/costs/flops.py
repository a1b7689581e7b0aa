"""Counts the arithmetic of a traced program, without a compilation."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.extend import core

# Primitives that move or choose numbers, and compute none.
_MOVES = frozenset(
  """
  all_gather argsort bitcast_convert_type broadcast_in_dim concatenate
  convert_element_type copy dynamic_slice dynamic_update_slice gather iota name
  optimization_barrier pad pvary random_bits random_fold_in random_seed
  random_split random_unwrap random_wrap reduce_precision reshape reshard rev
  scatter select_n sharding_constraint slice sort split squeeze stop_gradient
  threefry2x32 transpose
  """.split()  # noqa: SIM905
)


def count(jaxpr: Any) -> float:
  """Returns the floating point operations of a program.

    product of (m, k) and (k, n):    2 m k n
    convolution:                     2 · results · kernel area · channels in
    elementwise operation, sum:      1 for each result, or each term
    Cholesky factor of (n, n):       n³ / 3
    triangular solve of (n, n), m:   n² m
    eigenvectors of symmetric (n, n): 9 n³
    QR factors of (m, n), m ≥ n:     2 m n² - 2 n³ / 3
    LU factors of (n, n):            2 n³ / 3
    singular vectors of (m, n):      4 m² n + 8 m n² + 9 n³

  A scan counts as often as the loop turns. The number of turns of a
  `while_loop` is unknown, and the loop counts once. A condition counts as the
  longest branch.

  Args:
    jaxpr: A jaxpr, for example of `jax.jit(f).trace(*args)`.

  Returns:
    The number of operations.

  Source: Golub and Van Loan, Matrix Computations, 4th edition, 2013, for the
  decompositions: Algorithms 4.2.1, 8.3.3 (Section 8.3), 5.2.1, 3.2.1 and
  Figure 8.6.1.
  """
  if isinstance(jaxpr, core.ClosedJaxpr):
    jaxpr = jaxpr.jaxpr
  return float(sum(map(_of_equation, jaxpr.eqns)))


def _of_equation(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name in _FORMULAS:
    return _FORMULAS[name](equation)
  inner = [count(jaxpr) for jaxpr in _jaxprs(params)]
  if inner:
    if name == 'cond':
      return max(inner)
    return sum(inner) * params.get('length', 1)
  if name in _MOVES:
    return 0.0
  # A sum reads more numbers than the sum returns.
  arrays = [*equation.invars, *equation.outvars]
  return max(_size(array) for array in arrays)


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
  """Yields the programs inside an equation."""
  for value in params.values():
    items = value if isinstance(value, tuple | list) else (value,)
    for item in items:
      if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
        yield item


def _size(array: Any) -> int:
  return math.prod(getattr(array.aval, 'shape', ()))


def _product(equation: Any) -> float:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  terms = math.prod(left[axis] for axis in contracted)
  return 2.0 * terms * _size(equation.outvars[0])


def _convolution(equation: Any) -> float:
  kernel = equation.invars[1].aval.shape
  features = kernel[equation.params['dimension_numbers'].rhs_spec[0]]
  # With groups, the kernel has the channels of a group only. A dilation of the
  # images, as in the gradient of a stride, fills the images with zeros.
  dense = _size(equation.outvars[0]) * math.prod(kernel) / features
  return 2.0 * dense / math.prod(equation.params['lhs_dilation'])


def _of_matrices(
  formula: Callable[[int, int], float],
) -> Callable[[Any], float]:
  """Returns a formula of the last two axes, for a stack of matrices."""

  def of_equation(equation: Any) -> float:
    *stack, m, n = equation.invars[0].aval.shape
    return math.prod(stack) * formula(m, n)

  return of_equation


def _triangular_solve(equation: Any) -> float:
  right = equation.invars[1].aval.shape
  return float(math.prod(right) * equation.invars[0].aval.shape[-1])


def _singular(m: int, n: int) -> float:
  m, n = max(m, n), min(m, n)
  return 4.0 * m**2 * n + 8.0 * m * n**2 + 9.0 * n**3


_FORMULAS: dict[str, Callable[[Any], float]] = {
  'dot_general': _product,
  'conv_general_dilated': _convolution,
  'cholesky': _of_matrices(lambda m, n: n**3 / 3),
  'eigh': _of_matrices(lambda m, n: 9.0 * n**3),
  'geqrf': _of_matrices(lambda m, n: 2.0 * m * n**2 - 2 / 3 * n**3),
  'householder_product': _of_matrices(lambda m, n: 2.0 * m * n**2),
  'lu': _of_matrices(lambda m, n: 2 / 3 * n**3),
  'qr': _of_matrices(lambda m, n: 4.0 * m * n**2 - 4 / 3 * n**3),
  'svd': _of_matrices(_singular),
  'triangular_solve': _triangular_solve,
}
