"""Bounded functions in the place of a normalization, and a learned threshold.

`Squash` has the methods `init`, `learned` and `apply` of a `Normalization`, and
can replace a `Normalization`, but takes no statistics.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bn_research.norms import checks
from bn_research.norms.methods.stateless import Stateless
from bn_research.norms.pytrees import Number
from bn_research.norms.statistics.moments import (
  affine,
  aligned,
  apply_mask,
  wide,
)

Learned = Mapping[str, jax.Array]

_FUNCTIONS = ('tanh', 'erf')


@dataclasses.dataclass(frozen=True)
class Squash(Stateless):
  """A sigmoid function instead of a normalization, without statistics.

    tanh    y = tanh(α x) · scale + bias
    erf     y = erf(α x + s) · scale + bias

  The layer learns one slope α, and for 'erf' one shift s with initial value 0.

  Attributes:
    function: 'tanh' or 'erf'.
    alpha: Initial value of α.

  Raises:
    ValueError: If an option is out of range.

  Source: Zhu et al. (2025), equation 1 (dynamic tanh); Chen et al. (2025)
  (dynamic erf).
  """

  function: str = 'tanh'
  alpha: Number = 0.5

  scales = True

  def __post_init__(self):
    if self.function not in _FUNCTIONS:
      raise ValueError(
        f'function={self.function!r} must be one of {", ".join(_FUNCTIONS)}.'
      )
    checks.number('alpha', self.alpha, math.isfinite, 'finite')

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> dict[str, jax.Array]:
    """Returns the slope, and for erf the shift, each of shape ()."""
    del num_features
    alpha = {'alpha': jnp.asarray(self.alpha, dtype)}
    if self.function == 'tanh':
      return alpha
    return {**alpha, 'shift': jnp.zeros((), dtype)}

  def apply(
    self,
    x: jax.Array,
    state: tuple[()] = (),
    *,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    learned: Learned,
    use_running: bool = False,
    update: bool = True,
    mask: jax.Array | None = None,
    dtype: Any = None,
  ) -> tuple[jax.Array, tuple[()]]:
    """Squashes `x`; for the arguments see `Normalization.apply`.

    `learned` holds the arrays from the method `learned`.
    """
    del update  # there is no state to update
    x, mask, scale, bias = checks.activations(x, mask, scale, bias)
    checks.no_running(use_running)
    z = apply_mask(mask, wide(x))
    z = z * aligned(learned['alpha'], z)
    if self.function == 'tanh':
      y = affine(jnp.tanh(z), scale, bias, mask)
      return y.astype(checks.result_type(x, dtype)), state
    y = jax.scipy.special.erf(z + aligned(learned['shift'], z))
    y = affine(y, scale, bias, mask)
    return y.astype(checks.result_type(x, dtype)), state


def dynamic_tanh(alpha: float = 0.5) -> Squash:
  """Dynamic tanh: y = tanh(α x), with a learned α.

  Args:
    alpha: Initial value of α.

  Returns:
    The replacement of a normalization.

  Raises:
    ValueError: If `alpha` is not finite.

  Source: Zhu et al. (2025), equation 1.
  """
  return Squash('tanh', alpha)


def dynamic_erf(alpha: float = 0.5) -> Squash:
  """Dynamic erf: y = erf(α x + s), with a learned α and a learned s.

  Args:
    alpha: Initial value of α. The initial value of s is 0.

  Returns:
    The replacement of a normalization.

  Raises:
    ValueError: If `alpha` is not finite.

  Source: Chen et al. (2025).
  """
  return Squash('erf', alpha)


def thresholded_linear_unit(x: jax.Array, threshold: jax.Array) -> jax.Array:
  """Returns max(x, τ), the learned activation after filter response norm.

  Args:
    x: Activations (..., features), floating.
    threshold: τ, (features,) or another shape that broadcasts against `x`.

  Returns:
    An array of the shape and dtype of `x`.

  Source: Singh and Krishnan (2020), equation 4.
  """
  return jnp.maximum(x, threshold.astype(x.dtype))
