"""Driving a matrix to the identity with cubic polynomials and products only.

The Newton-Schulz iteration for the sign of x is x ← (3x - x³) / 2: quadratic
once x is near 1, but from a small x > 0 it gains a factor of only 1.5 a step.
Among odd cubics it is the best one *at* 1. On an interval [low, high] around 1
another is best, in the sense of the largest error, and it gains a factor of up
to 5 (Chen and Chow, 2014; for longer polynomials Amsel et al., 2025). Each step
knows the interval that the last one left; as the interval closes, the best
cubic becomes the Newton-Schulz one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.roots.matrices import distance_to_identity

State: TypeAlias = tuple[jax.Array, ...]

# Below this residual Newton-Schulz at least halves it, rounding apart:
# the next one is 3/4 r² + 1/4 r³ at most.
_QUADRATIC = 0.5
# From here on the cubics are the Newton-Schulz one to three digits, and the
# residual of a positive definite matrix cannot grow.
_SETTLED = 0.98


class Cubic(NamedTuple):
  """The odd cubic α x + β x³, and the interval that it maps to.

  Attributes:
    alpha: α, (..., 1, 1).
    beta: β, (..., 1, 1).
    low: The smallest value on the interval of x, (..., 1, 1).
    high: The largest, (..., 1, 1).
  """

  alpha: jax.Array
  beta: jax.Array
  low: jax.Array
  high: jax.Array


def best_cubic(low: jax.Array, high: jax.Array, residual: jax.Array) -> Cubic:
  """The odd cubic closest to 1 on [low, high], or the Newton-Schulz one.

  The error of the best cubic takes its largest size three times, with
  alternating sign: p(low) = p(high) = 1 - δ and, between them, a peak of 1 + δ.
  With q = low² + low·high + high² the first equation gives α = -β q, the
  second puts the peak at x² = q / 3.

  Args:
    low: The smallest x, (..., 1, 1), positive.
    high: The largest x, (..., 1, 1).
    residual: ‖X² - I‖_F, (..., 1, 1): where it is small already, the
      Newton-Schulz cubic is better than one for the whole interval.

  Returns:
    The cubic, and the image of [low, high].

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
) -> tuple[State, Cubic, jax.Array]:
  """Advances until one more step brings `state[0]` within `tolerance` of I.

  Each matrix of a batch stops on its own and then keeps its values. It stops

  - when the next residual, at most 3/4 r² + 1/4 r³ of this one in the Frobenius
    norm, is within the tolerance: that last step is left to the caller, who
    seldom needs all of its products;
  - when the residual no longer halves although it should: rounding is reached;
  - when it grows although it cannot: the matrix is not positive definite to
    rounding, and the step before is kept;
  - after as many steps as any eigenvalue takes that rounding has not lost;
  - when it is not a number.

  Args:
    advance: One step, `(state, cubic) -> state`, every leaf (..., d, d).
    state: Its first leaf is X² for the X whose sign is sought.
    low: A lower bound of the eigenvalues of X, (..., 1, 1); eigenvalues below
      it only take more steps.
    high: An upper bound, (..., 1, 1).
    tolerance: In the Frobenius norm.

  Returns:
    The state, the cubic of the last step, which is still to be done, and
    how many were done, int32 (..., 1, 1).
  """
  most = _most_steps(state[0].dtype)

  def body(loop: _Loop) -> _Loop:
    cubic = best_cubic(loop.low, loop.high, loop.residual)
    after = advance(loop.state, cubic)
    residual = distance_to_identity(after[0])
    bounded = (loop.low < _SETTLED) | (residual <= 1.01 * loop.residual)
    stalled = (loop.residual < _QUADRATIC) & (residual > 0.5 * loop.residual)
    accept = loop.active & bounded
    more = accept & ~stalled & _unfinished(residual, tolerance)
    active = more & (loop.steps < most)
    new = _Loop(after, cubic.low, cubic.high, residual, active, loop.steps)
    new = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, loop)
    steps = jnp.where(active, loop.steps + 1, loop.steps)
    return new._replace(active=active, steps=steps)

  residual = distance_to_identity(state[0])
  active = _unfinished(residual, tolerance)
  # Loop carries take every device-varying type from the residual: under
  # shard_map a constant would not have it.
  low, high = (jnp.where(active, bound, bound) for bound in (low, high))
  loop = _Loop(state, low, high, residual, active, active.astype(jnp.int32))
  loop = lax.while_loop(lambda loop: jnp.any(loop.active), body, loop)
  last = best_cubic(loop.low, loop.high, loop.residual)
  return loop.state, last, loop.steps


def default_tolerance(matrix: jax.Array) -> float:
  """32 ε √d: an error of 32 ε in each eigenvalue of a (d, d) matrix."""
  eps = float(jnp.finfo(matrix.dtype).eps)
  return 32 * eps * math.sqrt(matrix.shape[-1])


def _unfinished(residual: jax.Array, tolerance: float) -> jax.Array:
  return 0.75 * residual**2 + 0.25 * residual**3 > tolerance


def _most_steps(dtype: jnp.dtype) -> int:
  """Steps for an eigenvalue of X² of 4 ε, at a gain of 1.5.

  What the first cubics gain beyond that, the last, quadratic steps take. More
  steps would help no eigenvalue that is there, and blow up in the directions
  of one that is exactly 0, as channels that are equal have, until their
  rounding is all that is left.
  """
  eps = float(jnp.finfo(dtype).eps)
  return math.ceil(math.log(1 / math.sqrt(4 * eps)) / math.log(1.5))
