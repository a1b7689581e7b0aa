"""Drives a matrix to the identity with cubic polynomials and products only.

The Newton-Schulz iteration for the sign of x is x ← (3x - x³) / 2. Convergence
is quadratic near x = 1. A small x > 0 gains a factor of only 1.5 in each step.

The Newton-Schulz cubic is the best odd cubic *at* 1. On an interval [low, high]
around 1, another odd cubic has the smallest largest error, and gains a factor
of up to 5 in each step (Chen and Chow, 2014; Amsel et al., 2025, extend the
idea to longer polynomials). Each step maps the interval to a known, shorter
interval. As the interval shrinks to 1, the best cubic tends to the
Newton-Schulz cubic.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.roots.matrices import distance_to_identity

State: TypeAlias = tuple[jax.Array, ...]

# A Newton-Schulz step takes a residual r to at most 3/4 r² + 1/4 r³. Below this
# residual each step at least halves the residual, apart from rounding errors.
_QUADRATIC = 0.5
# If the interval begins above this bound, the cubics equal the Newton-Schulz
# cubic to three digits. Each step then reduces the residual of a positive
# definite matrix, apart from rounding errors.
_SETTLED = 0.98


class Cubic(NamedTuple):
  """An odd cubic α x + β x³, with the image of an interval of x.

  Attributes:
    alpha: α, (..., 1, 1).
    beta: β, (..., 1, 1).
    low: The smallest value of the cubic on the interval, (..., 1, 1).
    high: The largest value of the cubic on the interval, (..., 1, 1).
  """

  alpha: jax.Array
  beta: jax.Array
  low: jax.Array
  high: jax.Array


def best_cubic(low: jax.Array, high: jax.Array, residual: jax.Array) -> Cubic:
  """Returns the odd cubic closest to 1 on [low, high], or (3x - x³) / 2.

    p(x) = α x + β x³,    α = -β q,    q = low² + low·high + high²

  The error of the best cubic reaches the largest size at three points, with
  alternating signs: p(low) = p(high) = 1 - δ, and a peak of 1 + δ lies between
  low and high. The equation p(low) = p(high) gives α = -β q, and the peak then
  lies at x² = q / 3. The height of the peak gives β.

  Args:
    low: The smallest x, (..., 1, 1), positive, float32 or float64.
    high: The largest x, (..., 1, 1), of the same dtype.
    residual: ‖X² - I‖_F, (..., 1, 1), of the same dtype. A small residual says
      more than the interval, and the function returns the Newton-Schulz cubic.

  Returns:
    The cubic, with the image of [low, high] under the best cubic.

  Source: Chen and Chow, "A stable scaling of Newton-Schulz for improving the
  sign function computation of a Hermitian matrix" (2014).
  """
  q = low**2 + low * high + high**2
  edge = low * high * (low + high)
  peak = 2 * (q / 3) * jnp.sqrt(q / 3)
  scale = 2 / (edge + peak)
  near = residual < _QUADRATIC
  alpha = jnp.where(near, 1.5, scale * q)
  beta = jnp.where(near, -0.5, -scale)
  return Cubic(alpha, beta, scale * edge, scale * peak)


class _Loop(NamedTuple):
  state: State
  low: jax.Array
  high: jax.Array
  residual: jax.Array
  active: jax.Array
  steps: jax.Array


def drive_to_identity(
  advance: Callable[[State, Cubic], State],
  state: State,
  low: jax.Array,
  high: jax.Array,
  tolerance: float,
  is_sound: Callable[[State], jax.Array | bool] = lambda state: True,
) -> tuple[State, Cubic, jax.Array]:
  """Advances a state until a last step brings X² within the tolerance of I.

    ‖X² - I‖_F ≤ tolerance

  Each matrix of a batch stops independently of the rest of the batch, and then
  keeps the values. The reasons to stop a matrix with the residual r are:

  - The next residual, at most 3/4 r² + 1/4 r³, is within the tolerance. The
    caller does the last step, and seldom needs all products of the last step.
  - The residual should halve and does not. Only rounding errors are left.
  - The residual should fall and does not. Only eigenvalues that are zero or
    negative to rounding are left. The state before the step is kept, so that
    the kept state has the smallest residual since the cubics have settled.
  - `is_sound` rejects the state after the step. The state before is kept.
  - The number of steps suffices for each eigenvalue above rounding errors.
  - The residual is not a number.

  Args:
    advance: A step, `(state, cubic) -> state`.
    state: A tuple of arrays (..., d, d), float32 or float64. The first array is
      X², and the iteration computes the sign of X.
    low: A lower bound of the eigenvalues of X, (..., 1, 1). A smaller
      eigenvalue takes more steps.
    high: An upper bound of the eigenvalues of X, (..., 1, 1).
    tolerance: The tolerance in the Frobenius norm.
    is_sound: Tells whether rounding errors leave a state a meaning,
      `state -> (..., 1, 1)`, bool.

  Returns:
    The state before the last step, the cubic of the last step, and the number
    of steps, int32 (..., 1, 1).
  """
  most = _most_steps(state[0].dtype)

  def body(loop: _Loop) -> _Loop:
    cubic = best_cubic(loop.low, loop.high, loop.residual)
    after = advance(loop.state, cubic)
    residual = distance_to_identity(after[0])
    # Before the cubics settle, large eigenvalues overshoot 1 by design, and the
    # residual may grow.
    falls = (loop.low < _SETTLED) | (residual < loop.residual)
    stalled = (loop.residual < _QUADRATIC) & (residual > 0.5 * loop.residual)
    accept = loop.active & falls & is_sound(after)
    more = accept & ~stalled & _unfinished(residual, tolerance)
    active = more & (loop.steps < most)
    new = _Loop(after, cubic.low, cubic.high, residual, active, loop.steps)
    new = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, loop)
    steps = jnp.where(active, loop.steps + 1, loop.steps)
    return new._replace(active=active, steps=steps)

  residual = distance_to_identity(state[0])
  active = _unfinished(residual, tolerance)
  # The selection gives the bounds the device-varying type of the residual. A
  # constant lacks the type, and `shard_map` then rejects the loop.
  low, high = (jnp.where(active, bound, bound) for bound in (low, high))
  loop = _Loop(state, low, high, residual, active, active.astype(jnp.int32))
  loop = lax.while_loop(lambda loop: jnp.any(loop.active), body, loop)
  last = best_cubic(loop.low, loop.high, loop.residual)
  return loop.state, last, loop.steps


def default_tolerance(matrix: jax.Array) -> float:
  """Returns 32 ε √d, the residual from an error of 32 ε in each eigenvalue.

  Args:
    matrix: (..., d, d). Only the size d and the dtype matter.

  Returns:
    The tolerance in the Frobenius norm.
  """
  eps = float(jnp.finfo(matrix.dtype).eps)
  return 32 * eps * math.sqrt(matrix.shape[-1])


def least_eigenvalue(dtype: jnp.dtype) -> float:
  """Returns 4 ε: rounding errors decide each smaller eigenvalue.

  Args:
    dtype: The dtype of a matrix with eigenvalues of at most 1.

  Returns:
    The smallest eigenvalue for an iteration to resolve.
  """
  return 4 * float(jnp.finfo(dtype).eps)


def _unfinished(residual: jax.Array, tolerance: float) -> jax.Array:
  # The comparison is false for NaN. A matrix with NaN stops at once.
  return 0.75 * residual**2 + 0.25 * residual**3 > tolerance


def _most_steps(dtype: jnp.dtype) -> int:
  """Returns the number of steps for the least eigenvalue, at a gain of 1.5.

  The first cubics gain more than 1.5 in a step. The difference pays for the
  last, quadratic steps. The bound ends a loop whose residual falls for ever by
  rounding errors.
  """
  gain = 1 / math.sqrt(least_eigenvalue(dtype))
  return math.ceil(math.log(gain) / math.log(1.5))
