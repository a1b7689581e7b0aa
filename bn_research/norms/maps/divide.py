"""The dividing map of local response normalization, with a free power."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from bn_research.norms import checks
from bn_research.norms.axes import Map, Pair
from bn_research.norms.pytrees import Schedule
from bn_research.norms.statistics.memory import rematerialized
from bn_research.norms.statistics.moments import (
  Moments,
  Shape,
  apply_mask,
  estimate,
  wide,
)


@dataclasses.dataclass(frozen=True)
class Divide(Map):
  """Divides by a power of the mean square of the scope.

    y = x / (offset + gain · E x²)^power

  Attributes:
    offset: Added to the weighted mean square, so that small activations are
      divided by a constant.
    gain: Weight of the mean square.
    power: Exponent of the sum; 1/2 gives a root mean square.

  Source: Krizhevsky et al. (2012), Section 3.3.
  """

  numbers: ClassVar[tuple[str, ...]] = ('offset', 'gain', 'power')
  centre: ClassVar[bool] = False  # type: ignore[misc]  # no choice here
  ordinary: ClassVar[bool] = True
  merges: ClassVar[bool] = True

  offset: Schedule = 2.0
  gain: Schedule = 5e-4
  power: Schedule = 0.75

  @property
  def scales(self) -> bool:
    """Returns False, because the result depends on the absolute scale."""
    return False

  def estimate(self, x, mask, axes, devices, groups=None) -> Moments:
    """Estimates the second moment about zero."""
    return estimate(x, mask, axes, devices, False, groups)

  def initial(self, features: Shape, dtype: Any) -> Moments:
    """Returns mean 0 and mean square 1."""
    one = jnp.ones(features, dtype)
    return Moments(one, jnp.zeros(features, dtype), one)

  def recall(self, mean: jax.Array, var: jax.Array) -> Pair:
    """Returns the factor (offset + gain · E x²)^-power."""
    offset, gain, power = (
      checks.number_of_type(value, var)
      for value in (self.offset, self.gain, self.power)
    )
    return Pair(None, (offset + gain * var) ** -power)

  def deviation(self, pair: Pair) -> jax.Array:
    """Returns the inverse of the factor."""
    return 1 / pair.spread

  def divided_by(self, mean: Any, deviation: Any) -> Pair:
    """Returns the factor of a deviation."""
    return Pair(None, 1 / deviation)

  def finish(self, x, mask, pair, scale, bias, dtype) -> jax.Array:
    """Divides, scales and shifts."""

    # Without rematerialization the backward pass would keep a wide copy of `x`.
    def divide(x, mask, factor, scale, bias):
      y = apply_mask(mask, wide(x)) * factor
      y = y if scale is None else y * scale.astype(y.dtype)
      y = y if bias is None else y + bias.astype(y.dtype)
      return apply_mask(mask, y).astype(dtype)

    return rematerialized(divide)(x, mask, pair.spread, scale, bias)
