"""A population with a pair that is constant between renewals."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.axes import Map, Pair, Population
from bn_research.norms.populations.averages import (
  Cumulative,
  Ema,
  require_average,
  require_every,
)
from bn_research.norms.populations.running import Running, running_of
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.collectives import vary_like
from bn_research.norms.statistics.moments import Moments, Shape


class IntervalRunning(NamedTuple):
  """The state of `Interval`: a `Running`, and a pair.

  Attributes:
    mean: As in `Running`.
    var: As in `Running`.
    steps: As in `Running`.
    skipped: As in `Running`.
    weight: As in `Running`.
    pair: The pair that normalizes, made of the average at the last renewal: for
      example the mean (features,) and the whitening matrices (blocks, d, d).
  """

  mean: jax.Array
  var: jax.Array
  steps: jax.Array
  skipped: jax.Array
  weight: jax.Array
  pair: Pair


jax.export.register_namedtuple_serialization(
  IntervalRunning, serialized_name='bn_research.norms.IntervalRunning'
)


@dataclasses.dataclass(frozen=True)
class Interval(Population):
  """An average, with a pair that the population renews at an interval.

  Every update changes the average. At the interval the map makes a new pair of
  the average; for a whitening, only the renewal computes the root of the
  covariance.

  Attributes:
    every: Number of updates from a renewal to the next renewal. The first
      update renews the pair.
    population: The average, `Ema` or `Cumulative`.

  Raises:
    ValueError: If `every` is below 1, or if `population` is no average.

  Source: Ioffe and Szegedy (2015), Section 2: "at every training step or at
  some interval".
  """

  every: int
  population: Ema | Cumulative

  def __post_init__(self):
    require_every(self.every, 'step')
    require_average(self, self.population)

  @property
  def state_type(self) -> type:
    """`IntervalRunning`."""
    return IntervalRunning

  def init(self, map_: Map, features: Shape, dtype: Any = jnp.float32):
    """Returns the state before the first update."""
    return self.resume(self.population.init(map_, features, dtype), map_)

  def update(
    self, state: IntervalRunning, moments: Moments, map_: Map
  ) -> IntervalRunning:
    """Returns the state after one more batch."""
    average = self.population.update(running_of(state), moments, map_)
    # A skipped update leaves the average unchanged, and the renewal waits for
    # the next update.
    is_due = (average.steps > state.steps) & (state.steps % self.every == 0)

    # Both branches must have results of one type, under `shard_map` too, where
    # the type tells over which mesh axes an array varies.
    old = jax.tree.map(lambda leaf: vary_like(leaf, average.mean), state.pair)

    def renewed():
      pair = self.population.recall(average, map_)
      return jax.tree.map(
        lambda new, old: vary_like(
          meshes.cut_like(new.astype(old.dtype), old), old
        ),
        pair,
        old,
      )

    # The collectives of the moments are outside of the branch: each device must
    # take part in every collective.
    pair = lax.cond(is_due, renewed, lambda: old)
    return IntervalRunning(**average._asdict(), pair=pair)

  def adopt(
    self,
    state: IntervalRunning,
    moments: Moments,
    map_: Map,
    batches: jax.Array,
  ) -> IntervalRunning:
    """Returns the adopted average, with a new pair."""
    average = self.population.adopt(running_of(state), moments, map_, batches)
    return self.resume(average, map_)

  def resume(self, running: Running, map_: Map) -> IntervalRunning:
    """Returns the average, with a pair that the map makes of the average."""
    # The pair may hold the mean of the average: jit cannot donate one buffer
    # twice.
    present = map_.at(running.steps)
    pair = jax.tree.map(jnp.copy, self.population.recall(running, present))
    return IntervalRunning(**running._asdict(), pair=pair)

  def recall(self, state: IntervalRunning, map_: Map) -> Pair:
    """Returns the pair of the last renewal."""
    del map_
    return state.pair
