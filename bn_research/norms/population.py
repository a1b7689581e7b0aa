"""The population axis: the moments that inference uses.

Every estimate here is one recurrence, old + rate · (new - old), with a rate
that depends on the number of updates so far.
"""

import dataclasses
import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from bn_research.norms.moments import Moments


class Running(NamedTuple):
  """What is remembered of the moments.

  Attributes:
    mean: float32, shape of the features.
    var: float32, variance of that shape, or covariance with one more axis.
    steps: int32, how many updates were made.
    skipped: int32, how many updates were not made, because the moments were of
      no activation or not finite.
  """

  mean: jax.Array
  var: jax.Array
  steps: jax.Array
  skipped: jax.Array


def initial(mean: jax.Array, var: jax.Array) -> Running:
  """Returns the state before the first update."""
  # Two arrays: one buffer twice could not be donated.
  return Running(mean, var, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


class Population(Protocol):
  """How moments of batches become moments of the population."""

  def update(self, state: Running, moments: Moments) -> Running:
    """Returns the state after one more batch, of moments feature-shaped."""
    ...


def _step(state: Running, moments: Moments, rate) -> Running:
  """old + rate · (new - old), or the old state and a count of skips."""
  new = (moments.mean, moments.variance)
  sound = jnp.all(moments.count > 0)
  for value in new:
    sound &= jnp.all(jnp.isfinite(value))
  mean, var = (
    # At rate 1 this form forgets even an infinite `old`.
    jnp.where(sound, (1 - rate) * old + rate * value, old)
    for old, value in zip((state.mean, state.var), new, strict=True)
  )
  return Running(
    mean, var, state.steps + sound, state.skipped + jnp.logical_not(sound)
  )


@dataclasses.dataclass(frozen=True)
class Ema:
  """A decaying average of the moments of batches.

    old · momentum + new · (1 - momentum)

  With `debias`, the rate at update t is (1 - momentum) / (1 - momentumᵗ): the
  weights of the updates made so far then sum to one exactly, from the first,
  and the initial value has no weight at all.

  Attributes:
    momentum: Weight of the old value, in [0, 1]. PyTorch's `momentum` is one
      minus this.
    debias: Whether the initial value is forgotten exactly.
    unbiased: Whether variances are multiplied by n / (n - 1), n being the
      number of activations, as in Ioffe and Szegedy (2015), Algorithm 2.
  """

  momentum: float = 0.99
  debias: bool = True
  unbiased: bool = True

  def __post_init__(self):
    if not 0 <= self.momentum <= 1 or (self.debias and self.momentum == 1):
      raise ValueError(
        f'momentum={self.momentum} must be in [0, 1): it is the weight of the '
        'old value. To freeze a state, call with update=False.'
      )

  def update(self, state: Running, moments: Moments) -> Running:
    """Returns the state after one more batch."""
    moments = moments.unbiased() if self.unbiased else moments
    return _step(state, moments, self._rate(state.steps, moments.mean.dtype))

  def _rate(self, steps: jax.Array, dtype) -> jax.Array:
    rate = jnp.asarray(1 - self.momentum, dtype)
    if not self.debias or self.momentum == 0:
      return rate
    # 1 - momentum**t loses digits where momentum is near 1; expm1 does not.
    weight = -jnp.expm1((steps + 1).astype(dtype) * math.log(self.momentum))
    return jnp.where(steps == 0, 1, rate / weight).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Cumulative:
  """The average of the moments of all batches, each of the same weight.

  Source: Ioffe and Szegedy (2015), Algorithm 2, lines 10 and 11.

  Attributes:
    unbiased: Whether variances are multiplied by n / (n - 1).
  """

  unbiased: bool = True

  def update(self, state: Running, moments: Moments) -> Running:
    """Returns the state after one more batch."""
    moments = moments.unbiased() if self.unbiased else moments
    return _step(state, moments, 1 / (state.steps + 1).astype(jnp.float32))
