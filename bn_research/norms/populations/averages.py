"""The population axis: the moments that inference uses.

A population makes a state from initial moments and moves it by the moments of
each batch. Every state has the fields of `Running`.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from bn_research.norms.statistics.moments import Moments


class Running(NamedTuple):
  """What is remembered of the moments.

  Attributes:
    mean: float32, shape of the features.
    var: float32, variance of that shape, or covariances of blocks of d
      channels, (blocks, d, d).
    steps: int32, how many updates were made.
    skipped: int32, how many updates were not made, because the moments were of
      too few activations or not finite.
  """

  mean: jax.Array
  var: jax.Array
  steps: jax.Array
  skipped: jax.Array


class Population(Protocol):
  """How moments of batches become moments of the population."""

  def init(self, mean: jax.Array, var: jax.Array) -> Any:
    """Returns the state before the first update."""
    ...

  def update(self, state: Any, moments: Moments) -> Any:
    """Returns the state after one more batch, of moments feature-shaped."""
    ...


def _running(mean: jax.Array, var: jax.Array) -> Running:
  # Two arrays for the two counts: one buffer twice could not be donated.
  return Running(mean, var, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def _sound(moments: Moments, least: int) -> jax.Array:
  """Whether every feature has enough activations and finite moments."""
  sizes = [jnp.abs(leaf) for leaf in (moments.mean, moments.comoment)]
  if not moments.is_covariance:
    # One pass: a layer of few features feels each launch of a reduction.
    sizes = [jnp.maximum(*sizes)]
  sound = jnp.all(moments.count >= least)
  for size in sizes:
    sound &= jnp.isfinite(jnp.max(size, initial=0))
  return sound


def _moved(state, moments: Moments, rate, unbiased=False, sound=True):
  """old + rate · (new - old); the old state and a count if not sound."""
  sound &= _sound(moments, least=2 if unbiased else 1)
  moments = moments.unbiased() if unbiased else moments

  def move(old, new):
    # At rate 1 this form forgets even an infinite `old`.
    moved = ((1 - rate) * old + rate * new).astype(old.dtype)
    return jnp.where(sound, moved, old)

  return state._replace(
    mean=move(state.mean, moments.mean),
    var=move(state.var, moments.variance),
    steps=jnp.where(sound, state.steps + 1, state.steps),
    skipped=jnp.where(sound, state.skipped, state.skipped + 1),
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
      number of activations, as in Ioffe and Szegedy (2015), Algorithm 2. One
      activation tells nothing of a variance: such a batch is skipped.
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

  def init(self, mean: jax.Array, var: jax.Array) -> Running:
    """Returns the state before the first update."""
    return _running(mean, var)

  def update(self, state: Running, moments: Moments) -> Running:
    """Returns the state after one more batch."""
    rate = self._rate(state.steps, moments.mean.dtype)
    return _moved(state, moments, rate, self.unbiased)

  def _rate(self, steps: jax.Array, dtype) -> jax.Array:
    rate = jnp.asarray(1 - self.momentum, dtype)
    if not self.debias or self.momentum == 0:
      return rate
    # 1 - momentum**t loses digits where momentum is near 1; expm1 does not.
    weight = -jnp.expm1((steps + 1).astype(dtype) * math.log(self.momentum))
    return jnp.where(steps == 0, 1, rate / weight)


@dataclasses.dataclass(frozen=True)
class Cumulative:
  """The average of the moments of all batches, each of the same weight.

  Attributes:
    unbiased: Whether variances are multiplied by n / (n - 1).

  Source: Ioffe and Szegedy (2015), Algorithm 2, lines 10 and 11.
  """

  unbiased: bool = True

  def init(self, mean: jax.Array, var: jax.Array) -> Running:
    """Returns the state before the first update."""
    return _running(mean, var)

  def update(self, state: Running, moments: Moments) -> Running:
    """Returns the state after one more batch."""
    rate = 1 / (state.steps + 1).astype(moments.mean.dtype)
    return _moved(state, moments, rate, self.unbiased)


class PooledRunning(NamedTuple):
  """`Running`, with the activations seen, to weight what is to come.

  Attributes:
    mean: As in `Running`.
    var: As in `Running`; biased.
    steps: As in `Running`.
    skipped: As in `Running`.
    weight: float32, activations seen, of the shape of `mean`.
  """

  mean: jax.Array
  var: jax.Array
  steps: jax.Array
  skipped: jax.Array
  weight: jax.Array


@dataclasses.dataclass(frozen=True)
class Pooled:
  """The moments of all activations of all batches together, exactly.

  What differs between the means of batches is part of the variance, which no
  average of variances has. For re-estimation over a training set.
  """

  def init(self, mean: jax.Array, var: jax.Array) -> PooledRunning:
    """Returns the state before the first update."""
    start = _running(mean, var)._asdict()
    return PooledRunning(**start, weight=jnp.zeros_like(mean))

  def update(self, state: PooledRunning, moments: Moments) -> PooledRunning:
    """Returns the state after one more batch."""
    both = joined(_moments_of(state), moments)
    moved = _moved(state, both, 1.0, sound=_sound(moments, 1))
    return moved._replace(
      weight=jnp.where(moved.steps > state.steps, both.count, state.weight)
    )


def _moments_of(state: PooledRunning) -> Moments:
  return Moments(state.weight, state.mean, state.var).with_variance(state.var)


def joined(a: Moments, b: Moments) -> Moments:
  """Returns the moments of the union of two sets, exactly."""
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), a, b)
  return jax.tree.map(lambda leaf: leaf[0], stacked.merged(0))


class AccumulatedRunning(NamedTuple):
  """`Running`, with the micro-batches that wait for the rest of their batch.

  Attributes:
    mean: As in `Running`.
    var: As in `Running`.
    steps: As in `Running`.
    skipped: As in `Running`.
    pending: Moments of the micro-batches seen since the last update.
    seen: int32, how many those are.
  """

  mean: jax.Array
  var: jax.Array
  steps: jax.Array
  skipped: jax.Array
  pending: Moments
  seen: jax.Array


@dataclasses.dataclass(frozen=True)
class Accumulated:
  """Merges micro-batches of gradient accumulation into one update.

  The update after `every` micro-batches is that of the one big batch.

  Attributes:
    every: Micro-batches of a batch.
    population: `Ema` or `Cumulative`: what learns from the big batch.
  """

  every: int
  population: Ema | Cumulative

  def __post_init__(self):
    if self.every < 1:
      raise ValueError(f'every={self.every} must be at least 1 micro-batch.')

  def init(self, mean: jax.Array, var: jax.Array) -> AccumulatedRunning:
    """Returns the state before the first update."""
    pending = jax.tree.map(jnp.zeros_like, Moments(mean, mean, var))
    start = self.population.init(mean, var)._asdict()
    return AccumulatedRunning(
      **start, pending=pending, seen=jnp.zeros((), jnp.int32)
    )

  def update(
    self, state: AccumulatedRunning, moments: Moments
  ) -> AccumulatedRunning:
    """Returns the state after one more micro-batch."""
    pending = joined(state.pending, moments)
    running = Running(*state[:4])
    moved = self.population.update(running, pending)
    seen = state.seen + 1
    full = seen == self.every
    new, held = jax.tree.map(
      lambda yes, no: jnp.where(full, yes, no),
      (moved, jax.tree.map(jnp.zeros_like, pending)),
      (running, pending),
    )
    return AccumulatedRunning(
      **new._asdict(), pending=held, seen=jnp.where(full, 0, seen)
    )


@dataclasses.dataclass(frozen=True)
class Fixed:
  """Moments that no batch moves."""

  def init(self, mean: jax.Array, var: jax.Array) -> Running:
    """Returns the state, which stays."""
    return _running(mean, var)

  def update(self, state: Any, moments: Moments) -> Any:
    """Returns the same state."""
    del moments
    return state
