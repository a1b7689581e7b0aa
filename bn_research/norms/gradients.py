"""The gradient axis: which moments normalize, and what of them is learned from.

A gradient policy is a function of two pairs, what the map made of the moments
of the batch and of those of the population (None where nothing is remembered),
and returns the pair that normalizes. So it decides both the value and, with
`stop_gradient`, what the optimizer sees of the statistics.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import checks


class Pair(NamedTuple):
  """What a map makes of moments.

  Attributes:
    mean: Broadcastable against the activations; None where nothing is centred.
    spread: The variance, or a whitening matrix; None where nothing is scaled.
    steps: For a population, int32: updates made so far. None for a batch.
  """

  mean: Any
  spread: Any
  steps: Any = None


Gradient: TypeAlias = Callable[[Pair, Pair | None], Pair]


def through(batch: Pair, population: Pair | None) -> Pair:
  """The batch's moments, differentiated: normalization as published.

  Source: Ioffe and Szegedy (2015), Section 3.
  """
  del population
  return batch


def stopped(batch: Pair, population: Pair | None) -> Pair:
  """The batch's moments as constants: the mistake that Section 2 warns of.

  A step then moves a bias that the next normalization takes out again: the
  loss stays, the bias grows without bound. Source: Ioffe and Szegedy (2015),
  Section 2.
  """
  del population
  return lax.stop_gradient(batch)


def mean_only(batch: Pair, population: Pair | None) -> Pair:
  """The gradient passes through the mean; the spread is a constant."""
  del population
  return batch._replace(spread=lax.stop_gradient(batch.spread))


def spread_only(batch: Pair, population: Pair | None) -> Pair:
  """The gradient passes through the spread; the mean is a constant."""
  del population
  return batch._replace(mean=lax.stop_gradient(batch.mean))


Schedule: TypeAlias = float | Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Ramp:
  """A schedule: `initial` until `start`, then linear, `final` from `stop` on.

  Attributes:
    initial: First value.
    final: Last value.
    start: Updates after which the value begins to move.
    stop: Updates after which it has arrived.
  """

  initial: float
  final: float
  start: int
  stop: int

  def __call__(self, steps: jax.Array) -> jax.Array:
    """Returns the value after that many updates, float32."""
    part = (steps - self.start) / max(self.stop - self.start, 1)
    part = jnp.clip(part.astype(jnp.float32), 0, 1)
    return self.initial + part * (self.final - self.initial)


@dataclasses.dataclass(frozen=True)
class Renormalized:
  """The population's value, clipped, with the batch's gradient.

    x̂ = (x - mean) / σ · r + d,    r = σ / σ_population within [1/r_max, r_max],
                       d = (mean - mean_population) / σ_population within ±d_max

  with r and d held constant in the gradient. Without clipping that is
  inference's value in training too; r = 1 and d = 0 is batch normalization.

  Attributes:
    r_max: Bound of r, at least 1; or a function of the updates made so far.
    d_max: Bound of d; likewise.
    epsilon: That of the map.

  Source: Ioffe (2017), Algorithm 1.
  """

  r_max: Schedule = 3.0
  d_max: Schedule = 5.0
  epsilon: float = 1e-5

  def __post_init__(self):
    checks.non_negative(epsilon=self.epsilon)
    for name, least in (('r_max', 1), ('d_max', 0)):
      bound = getattr(self, name)
      # Infinite ones leave out the clipping.
      if not callable(bound) and not bound >= least:
        raise ValueError(f'{name}={bound} must be at least {least}.')

  def __call__(self, batch: Pair, population: Pair | None) -> Pair:
    """Returns the mean and variance that give x̂ when they normalize."""
    if population is None:
      raise ValueError(
        'renormalization needs running statistics; give the normalization a '
        'population, such as Ema().'
      )
    r_max = _at(self.r_max, population.steps)
    d_max = _at(self.d_max, population.steps)
    sigma = jnp.sqrt(batch.spread + self.epsilon)
    known = jnp.sqrt(population.spread + self.epsilon)
    r = lax.stop_gradient(jnp.clip(sigma / known, 1 / r_max, r_max))
    apart = (batch.mean - population.mean) / known
    d = lax.stop_gradient(jnp.clip(apart, -d_max, d_max))
    mean = batch.mean - d * sigma / r
    return Pair(mean, (sigma / r) ** 2 - self.epsilon)


def _at(schedule: Schedule, steps: jax.Array) -> jax.Array | float:
  return schedule(steps) if callable(schedule) else schedule


def recalled(batch: Pair, population: Pair | None) -> Pair:
  """The population's moments as constants; before the first, the batch's.

  Training then sees what inference sees. With a population that moves at
  intervals this is normalization at an interval (Ioffe and Szegedy, 2015,
  Section 2).
  """
  if population is None:
    raise ValueError(
      "gradient='recalled' needs running statistics; give the normalization a "
      'population, such as Ema().'
    )
  known = population._replace(steps=None)
  constant = jax.tree.map(
    lambda old, new: jnp.where(population.steps > 0, old, new), known, batch
  )
  return lax.stop_gradient(constant)


def frozen(batch: Pair, population: Pair | None) -> Pair:
  """The population's moments as constants, in training too."""
  del batch
  if population is None:
    raise ValueError(
      'frozen statistics are running ones, and this normalization remembers '
      'none; freeze one with a population, such as Ema().'
    )
  return lax.stop_gradient(population._replace(steps=None))


NAMES: dict[str, Gradient] = {
  'through': through,
  'stopped': stopped,
  'mean_only': mean_only,
  'spread_only': spread_only,
  'recalled': recalled,
  'frozen': frozen,
}


def resolve(gradient: str | Gradient) -> Gradient:
  """Returns the policy of that name, or the function itself.

  Raises:
    ValueError: For an unknown name; the message lists the names.
  """
  if callable(gradient):
    return gradient
  if gradient not in NAMES:
    raise ValueError(
      f'gradient={gradient!r} is not a gradient policy; use one of '
      f'{", ".join(NAMES)}, or a function of (batch, population) pairs.'
    )
  return NAMES[gradient]
