"""The exact moments of all batches together, and of micro-batches."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bn_research.norms.axes import Map, Population
from bn_research.norms.populations.averages import Cumulative, Ema
from bn_research.norms.populations.running import (
  Running,
  adopted,
  first,
  moved,
  running_of,
)
from bn_research.norms.statistics.moments import Moments, Shape, joined


def _objection_to_what_does_not_merge(population, map_: Map) -> str | None:
  if map_.merges:
    return None
  return (
    f'{population} merges the statistics of batches, and the statistics of '
    f'{map_} do not merge; take Ema() or Cumulative(), or give the map a merge.'
  )


@dataclasses.dataclass(frozen=True)
class Pooled(Population):
  """The moments of all activations of all batches together, exactly.

  The differences between the means of batches are part of the variance, which
  no average of variances has. For re-estimation over a training set.
  """

  def objection(self, normalization: Any) -> str | None:
    """Returns what does not fit: statistics that cannot be pooled."""
    map_ = normalization.map
    if map_.remembering_moments() != map_:
      return (
        f'{self} pools moments, and {map_} remembers what it makes of them; '
        f'take {map_.remembering_moments()}, or the population Ema().'
      )
    return _objection_to_what_does_not_merge(self, map_)

  @property
  def unit(self) -> Literal['activations']:
    """Activations of each feature."""
    return 'activations'

  @property
  def state_type(self) -> type:
    """`Running`."""
    return Running

  def init(self, map_: Map, features: Shape, dtype: Any = jnp.float32):
    """Returns the state before the first update."""
    start = first(map_, features, dtype)
    return start._replace(weight=jnp.zeros(features, dtype))

  def update(self, state: Running, moments: Moments, map_: Map) -> Running:
    """Returns the state after one more batch."""
    wide = jax.tree.map(
      lambda leaf: leaf.astype(moments.mean.dtype),
      Moments(state.weight, state.mean, state.var),
    )
    both = joined(wide.with_variance(wide.comoment), moments, map_.merge)
    # A batch without activations must count as skipped, though the union of
    # all batches has some.
    is_empty = jnp.any(moments.count < 1)
    both = both._replace(count=jnp.where(is_empty, 0, both.count))
    one = jnp.ones((), both.mean.dtype)
    return moved(state, both, map_, one, both.count, unbiased=False)

  def adopt(
    self, state: Running, moments: Moments, map_: Map, batches: jax.Array
  ) -> Running:
    """Returns the state of the pool of these moments alone."""
    return adopted(state, moments, map_, batches, moments.count)


class AccumulatedRunning(NamedTuple):
  """`Running`, with the micro-batches that wait for the rest of their batch.

  Attributes:
    mean: As in `Running`.
    var: As in `Running`.
    steps: As in `Running`.
    skipped: As in `Running`.
    weight: As in `Running`.
    pending: Moments of the micro-batches seen since the last update.
    seen: float32 (), the number of micro-batches that are pending.
  """

  mean: jax.Array
  var: jax.Array
  steps: jax.Array
  skipped: jax.Array
  weight: jax.Array
  pending: Moments
  seen: jax.Array


jax.export.register_namedtuple_serialization(
  AccumulatedRunning, serialized_name='bn_research.norms.AccumulatedRunning'
)


@dataclasses.dataclass(frozen=True)
class Accumulated(Population):
  """Merges micro-batches of gradient accumulation into one update.

  The update after `every` micro-batches is the update of the one big batch.

  Attributes:
    every: Micro-batches of a batch.
    population: `Ema` or `Cumulative`: what learns from the big batch.
  """

  every: int
  population: Ema | Cumulative

  def __post_init__(self):
    require_every(self.every, 'micro-batch')
    require_average(self, self.population)

  def objection(self, normalization: Any) -> str | None:
    """Returns what does not fit: statistics that do not merge."""
    return _objection_to_what_does_not_merge(self, normalization.map)

  @property
  def unit(self) -> Literal['share', 'batches', 'activations']:
    """The unit of the average inside."""
    return self.population.unit

  @property
  def state_type(self) -> type:
    """`AccumulatedRunning`."""
    return AccumulatedRunning

  def init(self, map_: Map, features: Shape, dtype: Any = jnp.float32):
    """Returns the state before the first update."""
    return self.resume(self.population.init(map_, features, dtype), map_)

  def update(
    self, state: AccumulatedRunning, moments: Moments, map_: Map
  ) -> AccumulatedRunning:
    """Returns the state after one more micro-batch."""
    pending = joined(state.pending, moments, map_.merge)
    running = running_of(state)
    after = self.population.update(running, pending, map_)
    seen = state.seen + 1
    is_full = seen == self.every
    new, held = jax.tree.map(
      lambda yes, no: jnp.where(is_full, yes, no),
      (after, jax.tree.map(jnp.zeros_like, pending)),
      (running, pending),
    )
    held = jax.tree.map(
      lambda leaf, like: leaf.astype(like.dtype), held, state.pending
    )
    seen = jnp.where(is_full, 0, seen)
    return AccumulatedRunning(**new._asdict(), pending=held, seen=seen)

  def adopt(
    self,
    state: AccumulatedRunning,
    moments: Moments,
    map_: Map,
    batches: jax.Array,
  ) -> AccumulatedRunning:
    """Returns the adopted average, with no micro-batch pending."""
    running = running_of(state)
    after = self.population.adopt(running, moments, map_, batches)
    return self.resume(after, map_)

  def resume(self, running: Running, map_: Map) -> AccumulatedRunning:
    """Returns the average, with no micro-batch pending."""
    del map_
    mean, var = running.mean, running.var
    pending = jax.tree.map(jnp.zeros_like, Moments(mean, mean, var))
    seen = jnp.zeros_like(running.steps)
    return AccumulatedRunning(**running._asdict(), pending=pending, seen=seen)


def require_every(every: int, unit: str) -> None:
  """Raises for a number of steps below one."""
  if not isinstance(every, int) or every < 1:
    raise ValueError(f'every={every} must be at least 1 {unit}.')


def require_average(outer: Population, inner: Any) -> None:
  """Raises where the population inside of another is not an average."""
  if not isinstance(inner, Ema | Cumulative):
    raise ValueError(
      f'{type(outer).__name__} needs an average inside, and got {inner}; give '
      'Ema() or Cumulative().'
    )
