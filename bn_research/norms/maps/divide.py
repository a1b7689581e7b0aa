"""The dividing map of local response normalization: a power of its own."""

import dataclasses

import jax
import jax.numpy as jnp

from bn_research.norms import checks
from bn_research.norms.gradients import Pair
from bn_research.norms.statistics.memory import rematerialized
from bn_research.norms.statistics.moments import (
  Moments,
  Shape,
  estimate,
  keep,
  wide,
)


@dataclasses.dataclass(frozen=True)
class Divide:
  """y = x / (offset + gain · E x²)^power.

  Attributes:
    offset: Keeps small responses as they are.
    gain: Weight of the mean square.
    power: 1/2 for a root mean square.

  Source: Krizhevsky et al. (2012), Section 3.3.
  """

  offset: float = 2.0
  gain: float = 5e-4
  power: float = 0.75

  centre = False
  joint = False
  scales = False

  def __post_init__(self):
    checks.non_negative(offset=self.offset, gain=self.gain, power=self.power)

  def estimate(self, x, mask, axes, devices, groups=None) -> Moments:
    """Estimates the second moment about zero."""
    return estimate(x, mask, axes, devices, False, groups)

  def initial(self, features: Shape) -> tuple[jax.Array, jax.Array]:
    """Returns mean 0 and mean square 1."""
    return jnp.zeros(features), jnp.ones(features)

  def pair(self, moments: Moments) -> Pair:
    """Returns what multiplies."""
    return self.recall(moments.mean, moments.variance)

  def recall(self, mean: jax.Array, var: jax.Array) -> Pair:
    """Returns the same of remembered moments."""
    return Pair(None, (self.offset + self.gain * var) ** -self.power)

  def finish(self, x, mask, pair, scale, bias, dtype) -> jax.Array:
    """Divides, scales and shifts."""

    def divide(x, mask, spread, scale, bias):
      y = keep(mask, wide(x)) * spread
      y = y if scale is None else y * scale
      y = y if bias is None else y + bias
      return keep(mask, y).astype(dtype)

    return rematerialized(divide)(x, mask, pair.spread, scale, bias)
