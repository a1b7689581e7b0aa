"""A norm: batch normalization by the mean absolute deviation."""

import dataclasses

import jax.numpy as jnp

from bn_research import norms


@dataclasses.dataclass(frozen=True)
class AbsoluteDeviation(norms.Standardize):
  """A map: (x - μ) / √(d² + ε), d = √(π / 2) · mean |x - μ|."""

  def estimate(self, x, mask, axes, devices, groups=None):
    """Returns the moments: d² in the place of the variance."""
    count, mean, _ = super().estimate(x, mask, axes, devices)
    apart = jnp.abs(x - mean)
    apart = apart if mask is None else jnp.where(mask, apart, 0)
    total = jnp.sum(apart, axes, keepdims=True)
    # A set without activations has a count of 0.
    deviation = jnp.sqrt(jnp.pi / 2) * total / jnp.maximum(count, 1)
    return norms.Moments(count, mean, count * deviation**2)


def l1_batch_norm(epsilon: float = 1e-5, momentum: float = 0.9):
  """A normalization, as a config names it."""
  return norms.Normalization(
    norms.Batch(), AbsoluteDeviation(epsilon=epsilon), norms.Ema(momentum)
  )
