"""Populations of whitening matrices: averaged, or renewed at an interval."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.maps.whiten import Whiten
from bn_research.norms.populations.averages import Cumulative, Ema, Running
from bn_research.norms.statistics.moments import Moments


@dataclasses.dataclass(frozen=True)
class Matrices:
  """Averages the whitening matrices of batches instead of their covariances.

  As in the papers, and too large: the mean of S^-½ is more than the S^-½ of the
  mean. For comparison with them.

  Attributes:
    population: How to average.
    map: The map of the normalization, with `remembered='matrix'`.

  Source: Huang et al. (2018), Algorithm 1; Huang et al. (2019), Algorithm 1.
  """

  population: Ema | Cumulative
  map: Whiten

  def init(self, mean: jax.Array, var: jax.Array) -> Running:
    """Returns the state before the first update: W = I."""
    return self.population.init(mean, var)

  def update(self, state: Running, moments: Moments) -> Running:
    """Returns the state after one more batch."""
    count = moments.count[..., :1, None, None]
    channels = moments.mean.shape[-1]
    root = self.map.root(moments.variance, channels, count)
    return self.population.update(state, moments.with_variance(root))


class IntervalRunning(NamedTuple):
  """What normalizes now, and the average from which it is renewed.

  Attributes:
    mean: That of the last renewal.
    var: W of the last renewal, (blocks, d, d).
    steps: int32, updates made.
    skipped: int32, updates not made.
    average: State of the average, which every batch moves.
  """

  mean: jax.Array
  var: jax.Array
  steps: jax.Array
  skipped: jax.Array
  average: Running


@dataclasses.dataclass(frozen=True)
class Interval:
  """Renews the whitening matrix every so many updates; constant in between.

  The moments are averaged at every update, so that collectives are the same at
  every step; only the root, which needs none, is computed at the interval.

  Attributes:
    every: Updates from one renewal to the next; the first renews.
    population: How to average.
    map: The map of the normalization, with `remembered='matrix'`.

  Source: Ioffe and Szegedy (2015), Section 2: "at every training step or at
  some interval".
  """

  every: int
  population: Ema | Cumulative
  map: Whiten

  def __post_init__(self):
    if self.every < 1:
      raise ValueError(f'every={self.every} must be at least 1 step.')

  def init(self, mean: jax.Array, var: jax.Array) -> IntervalRunning:
    """Returns the state before the first update: W = I."""
    average = self.population.init(mean, var)
    now = jax.tree.map(jnp.copy, average)
    return IntervalRunning(**now._asdict(), average=average)

  def update(self, state: IntervalRunning, moments: Moments) -> IntervalRunning:
    """Returns the state after one more batch."""
    average = self.population.update(state.average, moments)
    moved = average.steps > state.average.steps

    def renewed():
      root = self.map.root(average.var, average.mean.shape[-1])
      return average.mean, root

    mean, root = lax.cond(
      moved & (state.steps % self.every == 0),
      renewed,
      lambda: (state.mean, state.var),
    )
    return IntervalRunning(mean, root, average.steps, average.skipped, average)
