"""Populations that merge the moments of batches, or of micro-batches."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bn_research.norms import checks
from bn_research.norms.axes import Map, Population
from bn_research.norms.populations.averages import (
  Cumulative,
  Ema,
  require_average,
  require_every,
)
from bn_research.norms.populations.running import (
  Running,
  RunningPopulation,
  adopted,
  moved,
  running_of,
)
from bn_research.norms.statistics.moments import Moments, Shape, joined


def _objection_without_merge(population, map_: Map) -> str | None:
  if map_.merges:
    return None
  return (
    f'{population} merges the statistics of batches, and the statistics of '
    f'{map_} do not merge; take Ema() or Cumulative(), or give the map a merge.'
  )


@dataclasses.dataclass(frozen=True)
class Pooled(RunningPopulation):
  """The exact moments of all activations of all batches.

  The merge of moments adds the variance between the means of the batches, which
  an average of variances lacks. `Pooled` is for re-estimation over a training
  set.

  Source: Chan, Golub and LeVeque (1979), for the merge.
  """

  def objection(self, normalization: Any) -> str | None:
    """Returns a sentence if the map remembers arrays that do not merge."""
    map_ = normalization.map
    if map_.remembering_moments() != map_:
      return (
        f'{self} pools moments, and {map_} remembers a function of the '
        f'moments; take {map_.remembering_moments()}, or the population Ema().'
      )
    return _objection_without_merge(self, map_)

  def init(self, map_: Map, features: Shape, dtype: Any = jnp.float32):
    """Returns the state before the first update."""
    start = super().init(map_, features, dtype)
    # A mask may hide different features of each example, so each feature needs
    # a count.
    wide = checks.wider(dtype)  # a float16 count of activations overflows
    return start._replace(weight=jnp.zeros(features, wide))

  def update(self, state: Running, moments: Moments, map_: Map) -> Running:
    """Returns the state after one more batch."""
    wide = jax.tree.map(
      lambda leaf: leaf.astype(moments.mean.dtype),
      Moments(state.weight, state.mean, state.var),
    )
    # A state holds a variance, and the merge needs the sum of squares.
    both = joined(wide.with_variance(wide.comoment), moments, map_.merge)
    # A batch without activations must count as skipped, though the union of
    # all batches has some.
    is_empty = jnp.any(moments.count < 1)
    both = both._replace(count=jnp.where(is_empty, 0, both.count))
    # The union replaces the old moments, hence a rate of 1.
    one = jnp.ones((), both.mean.dtype)
    return moved(state, both, map_, one, both.count, unbiased=False)

  def adopt(
    self, state: Running, moments: Moments, map_: Map, batches: jax.Array
  ) -> Running:
    """Returns the state of a pool that holds only the given moments."""
    return adopted(state, moments, map_, batches, moments.count)


class AccumulatedRunning(NamedTuple):
  """The state of `Accumulated`: a `Running`, and the pending micro-batches.

  Attributes:
    mean: As in `Running`.
    var: As in `Running`.
    steps: As in `Running`.
    skipped: As in `Running`.
    weight: As in `Running`.
    pending: Moments of the micro-batches since the last update, of the shapes
      of `mean` and `var`, in float32 or a wider type; the count has the shape
      of `mean`.
    seen: The number of pending micro-batches, float32 ().
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
  """An average of batches, each merged from micro-batches.

  Gradient accumulation divides a batch into micro-batches.
  The update after `every` micro-batches equals the update of one large batch
  with the same activations.

  Attributes:
    every: Number of micro-batches in a batch.
    population: The average that learns from the batch, `Ema` or `Cumulative`.

  Raises:
    ValueError: If `every` is below 1, or if `population` is no average.

  Source: Chan, Golub and LeVeque (1979), for the merge.
  """

  every: int
  population: Ema | Cumulative

  def __post_init__(self):
    require_every(self.every, 'micro-batch')
    require_average(self, self.population)

  def objection(self, normalization: Any) -> str | None:
    """Returns a sentence if the statistics of the map do not merge."""
    return _objection_without_merge(self, normalization.map)

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
    # `seen` may be traced, so every call computes the update, and a select
    # drops the update of an incomplete batch.
    after = self.population.update(running, pending, map_)
    seen = state.seen + 1
    is_full = seen == self.every
    new, held = jax.tree.map(
      lambda yes, no: jnp.where(is_full, yes, no),
      (after, jax.tree.map(jnp.zeros_like, pending)),
      (running, pending),
    )
    # The merge is in float32 or wider. A loop of jit needs a state of one type.
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
    # A float16 count or sum of squares overflows.
    zeros = partial(jnp.zeros_like, dtype=checks.wider(mean.dtype))
    pending = jax.tree.map(zeros, Moments(mean, mean, var))
    seen = jnp.zeros_like(running.steps)
    return AccumulatedRunning(**running._asdict(), pending=pending, seen=seen)
