"""What normalizes is renewed at an interval, and constant in between."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.axes import Map, Pair, Population
from bn_research.norms.populations.averages import Cumulative, Ema
from bn_research.norms.populations.pooled import require_average, require_every
from bn_research.norms.populations.running import Running, running_of
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.moments import Moments, Shape


class IntervalRunning(NamedTuple):
  """`Running`, an average that every batch moves, and what normalizes now.

  Attributes:
    mean: As in `Running`.
    var: As in `Running`.
    steps: As in `Running`.
    skipped: As in `Running`.
    weight: As in `Running`.
    pair: What the map made of the average at the last renewal, such as the mean
      and the whitening matrices.
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
  """Renews what normalizes every so many updates; constant in between.

  The moments are averaged at every update, so that collectives are the same at
  every step. Only what the map makes of the average, such as the root of a
  covariance, is computed at the interval.

  Attributes:
    every: Updates from one renewal to the next; the first update renews.
    population: How to average, `Ema` or `Cumulative`.

  Source: Ioffe and Szegedy (2015), Section 2: "at every training step or at
  some interval".
  """

  every: int
  population: Ema | Cumulative

  def __post_init__(self):
    require_every(self.every, 'step')
    require_average(self, self.population)

  @property
  def unit(self) -> Literal['share', 'batches', 'activations']:
    """The unit of the average inside."""
    return self.population.unit

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
    is_due = (average.steps > state.steps) & (state.steps % self.every == 0)

    def renewed():
      pair = self.population.recall(average, map_)
      return jax.tree.map(
        lambda new, old: meshes.cut_like(new.astype(old.dtype), old),
        pair,
        state.pair,
      )

    # No collective is inside of the branch: devices may not part ways there.
    pair = lax.cond(is_due, renewed, lambda: state.pair)
    return IntervalRunning(**average._asdict(), pair=pair)

  def adopt(
    self,
    state: IntervalRunning,
    moments: Moments,
    map_: Map,
    batches: jax.Array,
  ) -> IntervalRunning:
    """Returns the adopted average, and what the map makes of the average."""
    average = self.population.adopt(running_of(state), moments, map_, batches)
    return self.resume(average, map_)

  def resume(self, running: Running, map_: Map) -> IntervalRunning:
    """Returns the average, and what the map makes of the average."""
    # Copies: one buffer could not be donated twice.
    pair = jax.tree.map(jnp.copy, self.population.recall(running, map_))
    return IntervalRunning(**running._asdict(), pair=pair)

  def recall(self, state: IntervalRunning, map_: Map) -> Pair:
    """Returns what was made at the last renewal."""
    del map_
    return state.pair
