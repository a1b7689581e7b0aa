"""Averages of the moments of batches, decaying or cumulative, and none."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from bn_research.norms import checks
from bn_research.norms.axes import Map, Pair, Population
from bn_research.norms.populations.running import (
  Running,
  adopted,
  first,
  moved,
)
from bn_research.norms.pytrees import Schedule
from bn_research.norms.statistics.moments import Moments, Shape


@dataclasses.dataclass(frozen=True)
class Ema(Population):
  """A decaying average of the moments of batches.

    old · momentum + new · (1 - momentum)

  With `debias`, the initial value has no weight at all: each update is divided
  by the sum w of the weights of the updates made so far,

    w ← w + (1 - momentum) (1 - w),    rate = (1 - momentum) / w,

  which is right for a momentum that changes, too. For a constant momentum, w is
  1 - momentumᵗ after t updates.

  Attributes:
    momentum: Weight of the old value, in [0, 1]: a number, an array of shape
      (), or a function of the updates made so far. PyTorch's `momentum` is one
      minus this.
    debias: Whether the initial value is forgotten exactly.
    unbiased: Whether variances are multiplied by n / (n - 1), n being the
      number of activations, as in Ioffe and Szegedy (2015), Algorithm 2. One
      activation tells nothing of a variance: the update of such a batch is
      skipped. The mean square about zero is unbiased as it is.
  """

  numbers: ClassVar[tuple[str, ...]] = ('momentum',)

  momentum: Schedule = 0.99
  debias: bool = True
  unbiased: bool = True

  def __post_init__(self):
    if isinstance(self.momentum, float) and 0 <= self.momentum < 1:
      return
    if checks.is_array(self.momentum) or callable(self.momentum):
      return checks.number('momentum', self.momentum, checks.is_non_negative)
    is_number = isinstance(self.momentum, int | float)
    if (
      not is_number
      or not 0 <= self.momentum <= 1
      or (self.debias and self.momentum == 1)
    ):
      raise ValueError(
        f'momentum={self.momentum} must be in [0, 1): it is the weight of the '
        'old value. To freeze a state, call with update=False.'
      )

  @property
  def state_type(self) -> type:
    """`Running`."""
    return Running

  def init(self, map_: Map, features: Shape, dtype: Any = jnp.float32):
    """Returns the state before the first update."""
    return first(map_, features, dtype)

  def update(self, state: Running, moments: Moments, map_: Map) -> Running:
    """Returns the state after one more batch."""
    like = moments.mean
    momentum = self.momentum
    if not isinstance(momentum, float):
      momentum = checks.number_of_type(self.at(state.steps).momentum, like)
    # Of a Python number, 1 - momentum is exact to float64 before it is rounded.
    share = jnp.asarray(1 - momentum, like.dtype)
    weight = state.weight.astype(like.dtype)
    weight = weight + share * (1 - weight)
    rate = share
    if self.debias:
      rate = share / jnp.where(weight > 0, weight, 1)
    return moved(state, moments, map_, rate, weight, self.unbiased)

  def adopt(
    self, state: Running, moments: Moments, map_: Map, batches: jax.Array
  ) -> Running:
    """Returns the state of an average that has long forgotten its start."""
    return adopted(state, moments, map_, batches, jnp.ones_like(state.weight))


@dataclasses.dataclass(frozen=True)
class Cumulative(Population):
  """The average of the moments of all batches, each of the same weight.

  Attributes:
    unbiased: Whether variances are multiplied by n / (n - 1).

  Source: Ioffe and Szegedy (2015), Algorithm 2, lines 10 and 11.
  """

  unbiased: bool = True

  @property
  def unit(self) -> Literal['batches']:
    """Batches: each weighs as much as another."""
    return 'batches'

  @property
  def state_type(self) -> type:
    """`Running`."""
    return Running

  def init(self, map_: Map, features: Shape, dtype: Any = jnp.float32):
    """Returns the state before the first update."""
    return first(map_, features, dtype)

  def update(self, state: Running, moments: Moments, map_: Map) -> Running:
    """Returns the state after one more batch."""
    weight = state.weight.astype(moments.mean.dtype) + 1
    return moved(state, moments, map_, 1 / weight, weight, self.unbiased)

  def adopt(
    self, state: Running, moments: Moments, map_: Map, batches: jax.Array
  ) -> Running:
    """Returns the state of an average of that many batches."""
    return adopted(state, moments, map_, batches, batches)


@dataclasses.dataclass(frozen=True)
class Fixed(Population):
  """Moments that no batch moves.

  Attributes:
    population: None for a state of mean and variance; or the population whose
      state is kept, and which recalls the state in a way of its own.
  """

  population: Population | None = None

  @property
  def unit(self) -> Literal['share', 'batches', 'activations']:
    """The unit of the population whose state is kept."""
    return 'share' if self.population is None else self.population.unit

  @property
  def state_type(self) -> type:
    """The type of the state that is kept."""
    return Running if self.population is None else self.population.state_type

  def init(self, map_: Map, features: Shape, dtype: Any = jnp.float32) -> Any:
    """Returns the state, which stays."""
    if self.population is not None:
      return self.population.init(map_, features, dtype)
    return first(map_, features, dtype)

  def update(self, state: Any, moments: Moments, map_: Map) -> Any:
    """Returns the same state."""
    del moments, map_
    return state

  def adopt(
    self, state: Any, moments: Moments, map_: Map, batches: jax.Array
  ) -> Any:
    """Returns the state with these moments."""
    if self.population is not None:
      return self.population.adopt(state, moments, map_, batches)
    return adopted(state, moments, map_, batches, jnp.ones_like(state.weight))

  def resume(self, running: Running, map_: Map) -> Any:
    """Returns the state that goes on from a `Running`, and stays."""
    if self.population is not None:
      return self.population.resume(running, map_)
    return running

  def recall(self, state: Any, map_: Map) -> Pair:
    """Makes what normalizes of the state."""
    if self.population is not None:
      return self.population.recall(state, map_)
    return map_.recall(state.mean, state.var)
