"""Averages of the moments of batches, and moments that never change."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bn_research.norms import checks
from bn_research.norms.axes import Map, Pair, Population
from bn_research.norms.populations.running import (
  Running,
  RunningPopulation,
  moved,
)
from bn_research.norms.pytrees import Schedule
from bn_research.norms.statistics.moments import Moments, Shape


@dataclasses.dataclass(frozen=True)
class Ema(RunningPopulation):
  """A decaying average of the moments of batches.

    old · momentum + new · (1 - momentum)

  With `debias` the initial value has no weight. The rate of an update is then
  divided by w, the sum of the weights of all updates so far:

    w ← w + (1 - momentum) (1 - w),    rate = (1 - momentum) / w,
    old · (1 - rate) + new · rate

  The formula is exact also for a changing momentum. For a constant momentum, w
  is 1 - momentumᵗ after t updates.

  Attributes:
    momentum: Weight of the old value: a number, an array of shape (), or a
      function of the number of updates, in [0, 1], and below 1 for a number
      with `debias`. The `momentum` of PyTorch is 1 minus this momentum.
    debias: Whether the initial value has no weight.
    unbiased: Whether to multiply variances by n / (n - 1), for n activations. A
      batch with a single activation of a feature gives no variance, and the
      population skips the update. A mean square about zero needs no factor.

  Raises:
    ValueError: If `momentum` is out of range.

  Source: Ioffe and Szegedy (2015), Algorithm 2, for n / (n - 1).
  """

  numbers: ClassVar[tuple[str, ...]] = ('momentum',)

  momentum: Schedule = 0.99
  debias: bool = True
  unbiased: bool = True

  def __post_init__(self):
    # Layers of Flax build choices in eager code, so the usual case is short.
    if isinstance(self.momentum, float) and 0 <= self.momentum < 1:
      return
    if checks.is_array(self.momentum) or callable(self.momentum):
      return checks.number('momentum', self.momentum, checks.is_non_negative)
    is_number = isinstance(self.momentum, int | float | np.number)
    if (
      not is_number
      or not 0 <= self.momentum <= 1
      or (self.debias and self.momentum == 1)
    ):
      range_, advice = (
        ('[0, 1)', ' To freeze a state, call with update=False.')
        if self.debias
        else ('[0, 1]', '')
      )
      raise ValueError(
        f'momentum={self.momentum} must be in {range_}: it is the weight of '
        f'the old value.{advice}'
      )

  def update(self, state: Running, moments: Moments, map_: Map) -> Running:
    """Returns the state after one more batch."""
    like = moments.mean
    momentum = self.momentum
    if not isinstance(momentum, float):
      momentum = checks.number_of_type(self.at(state.steps).momentum, like)
    # For a Python number, 1 - momentum is computed in float64 and rounded once.
    share = jnp.asarray(1 - momentum, like.dtype)
    weight = state.weight.astype(like.dtype)
    if self.debias:
      weight = weight + share * (1 - weight)
      # A schedule may begin with a momentum of 1, which gives 0 / 0 at first.
      rate = share / jnp.where(weight > 0, weight, 1)
    else:
      # The initial value is a part of the average, which is therefore whole.
      weight, rate = jnp.ones_like(weight), share
    return moved(state, moments, map_, rate, weight, self.unbiased)


@dataclasses.dataclass(frozen=True)
class Cumulative(RunningPopulation):
  """The average of the moments of all batches, with equal weights.

    old + (new - old) / t    for the update number t

  `steps` counts the updates, and the `weight` of the average is 1.

  Attributes:
    unbiased: Whether to multiply variances by n / (n - 1), for n activations.

  Source: Ioffe and Szegedy (2015), Algorithm 2, lines 10 and 11.
  """

  unbiased: bool = True

  def update(self, state: Running, moments: Moments, map_: Map) -> Running:
    """Returns the state after one more batch."""
    rate = 1 / (state.steps.astype(moments.mean.dtype) + 1)
    one = jnp.ones_like(state.weight)
    return moved(state, moments, map_, rate, one, self.unbiased)


@dataclasses.dataclass(frozen=True)
class Fixed(Population):
  """Moments that no batch changes.

  Attributes:
    population: The population that made the state and reads the state. None is
      enough for a state `Running`.
  """

  population: Population | None = None

  @property
  def _reader(self) -> Population:
    """The population that makes and reads the state."""
    return self.population or RunningPopulation()

  @property
  def state_type(self) -> type:
    """The class of the state of `population`, or `Running`."""
    return self._reader.state_type

  def init(self, map_: Map, features: Shape, dtype: Any = jnp.float32) -> Any:
    """Returns the state, which no update changes."""
    return self._reader.init(map_, features, dtype)

  def update(self, state: Any, moments: Moments, map_: Map) -> Any:
    """Returns the state unchanged."""
    del moments, map_
    return state

  def adopt(
    self, state: Any, moments: Moments, map_: Map, batches: jax.Array
  ) -> Any:
    """Returns the state with these moments."""
    return self._reader.adopt(state, moments, map_, batches)

  def resume(self, running: Running, map_: Map) -> Any:
    """Returns the state made of a `Running`, which no update changes."""
    return self._reader.resume(running, map_)

  def recall(self, state: Any, map_: Map) -> Pair:
    """Makes the pair that normalizes, from the state."""
    return self._reader.recall(state, map_)


def require_every(every: int, unit: str) -> None:
  """Raises a ValueError if `every` is no integer, or is below 1."""
  if not isinstance(every, int | np.integer) or every < 1:
    raise ValueError(f'every={every} must be at least 1 {unit}.')


def require_average(outer: Population, inner: Any) -> None:
  """Raises a ValueError if the inner population is not an average."""
  if not isinstance(inner, Ema | Cumulative):
    raise ValueError(
      f'{type(outer).__name__} needs an average inside, and got {inner}; give '
      'Ema() or Cumulative().'
    )
