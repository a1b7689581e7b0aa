"""The gradient axis: which moments normalize, and which derivatives pass.

A gradient policy is a function of two pairs and the map. The map makes the
first pair of the moments of the batch. The population makes the second pair of
the state; without a population the second pair is None. The policy returns the
pair that normalizes. With `stop_gradient` a policy hides a derivative of the
statistics from the optimizer.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import checks
from bn_research.norms.axes import Axis, Gradient, Map, Pair
from bn_research.norms.pytrees import Schedule
from bn_research.norms.statistics import meshes


def through(batch: Pair, population: Pair | None, map_: Map) -> Pair:
  """Returns the pair of the batch: batch normalization as published.

  The gradient passes through all moments.

  Source: Ioffe and Szegedy (2015), Section 3.
  """
  del population, map_
  return batch


def stopped(batch: Pair, population: Pair | None, map_: Map) -> Pair:
  """Returns the pair of the batch as a constant: a mistake to study.

  The optimizer moves a bias before the normalization, and the normalization
  subtracts the bias again. The loss stays the same, and the bias grows without
  bound.

  Source: Ioffe and Szegedy (2015), Section 2.
  """
  del population, map_
  return lax.stop_gradient(batch)


def mean_only(batch: Pair, population: Pair | None, map_: Map) -> Pair:
  """Returns the pair of the batch, with the spread as a constant.

  The gradient passes through the mean only.
  """
  del population, map_
  return batch._replace(spread=lax.stop_gradient(batch.spread))


def spread_only(batch: Pair, population: Pair | None, map_: Map) -> Pair:
  """Returns the pair of the batch, with the mean as a constant.

  The gradient passes through the spread only.
  """
  del population, map_
  return batch._replace(mean=lax.stop_gradient(batch.mean))


@dataclasses.dataclass(frozen=True)
class Ramp:
  """A schedule that goes linearly from a first value to a last value.

    initial + part · (final - initial),
    part = (steps - start) / (stop - start) within [0, 1]

  Attributes:
    initial: The value until `start`.
    final: The value from `stop` on.
    start: The number of updates at which the value begins to change.
    stop: The number of updates at which the value reaches `final`.
  """

  initial: float
  final: float
  start: int
  stop: int

  def __call__(self, steps: jax.Array) -> jax.Array:
    """Returns the value after a number of updates, float32 ().

    Args:
      steps: The number of updates so far, ().
    """
    # `start` may equal `stop`: the value then jumps, and nothing divides by 0.
    part = (steps - self.start) / max(self.stop - self.start, 1)
    part = jnp.clip(part.astype(jnp.float32), 0, 1)
    return self.initial + part * (self.final - self.initial)


@dataclasses.dataclass(frozen=True)
class Renormalized(Axis):
  """The value of the population within bounds, and the gradient of the batch.

    x̂ = (x - mean) / σ · r + d,    r = σ / σ_population within [1/r_max, r_max],
                       d = (mean - mean_population) / σ_population within ±d_max

  The gradient treats r and d as constants. Within the bounds, training and
  inference compute the same value. With r = 1 and d = 0 the value is the value
  of batch normalization. A map that does not centre has d = 0, and a map that
  does not scale has σ = 1.

  Attributes:
    r_max: Bound of r, at least 1: a number, an array of shape (), or a function
      of the number of updates. An infinite bound never clips.
    d_max: Bound of d, at least 0: a number, an array of shape (), or a function
      of the number of updates. An infinite bound never clips.

  Raises:
    ValueError: If a bound is too small.

  Source: Ioffe (2017), Algorithm 1.
  """

  numbers: ClassVar[tuple[str, ...]] = ('r_max', 'd_max')

  r_max: Schedule = 3.0
  d_max: Schedule = 5.0

  def __post_init__(self):
    for name, least in (('r_max', 1), ('d_max', 0)):
      # Infinity is in range here, unlike in the check of `Node`.
      in_range = lambda bound, least=least: bound >= least
      words = f'at least {least}'
      checks.number(name, getattr(self, name), in_range, words)

  def objection(self, normalization: Any) -> str | None:
    """Returns a sentence if the population is missing or the map is joint."""
    if normalization.population is None:
      return (
        f'renormalization needs running statistics, and {self} got none; give '
        'the normalization a population, such as Ema().'
      )
    if normalization.map.joint:
      return (
        f'{self} compares the deviations of single features, and '
        f'{normalization.map} takes features together; take the policy '
        'recalled, or a map such as Standardize().'
      )
    return None

  def __call__(self, batch: Pair, population: Pair | None, map_: Map) -> Pair:
    """Returns the pair that gives x̂.

    Args:
      batch: The pair of the batch.
      population: The pair of the population.
      map_: The map, which is not joint.
    """
    assert population is not None  # or `objection` refuses
    sigma, known = map_.deviation(batch), map_.deviation(population)
    # σ is the number 1.0 for a map that does not scale. A float64 array as a
    # bound must not widen the result, so the bounds take the type of the pair.
    like = jnp.asarray(sigma, jnp.result_type(batch.mean, batch.spread))
    r_max, d_max = (
      checks.number_of_type(bound, like) for bound in (self.r_max, self.d_max)
    )
    r = lax.stop_gradient(jnp.clip(sigma / known, 1 / r_max, r_max))
    mean = batch.mean
    # A map computes (x - m) / s. With s = σ / r and m = mean - d σ / r the
    # quotient is x̂. Only r and d are constants, so the gradient still passes
    # through the mean and through σ, as in the paper.
    if map_.centre:
      d = jnp.clip((mean - population.mean) / known, -d_max, d_max)
      mean = mean - lax.stop_gradient(d) * sigma / r
    return map_.divided_by(mean, sigma / r)


def _needs_population(policy: Gradient) -> Gradient:
  """Adds an objection to a policy: a normalization needs a population."""

  def objection(normalization: Any) -> str | None:
    if normalization.population is not None:
      return None
    return (
      f'gradient={policy.__name__!r} needs running statistics, and this '  # type: ignore[attr-defined]
      'normalization remembers none; give it a population, such as Ema().'
    )

  policy.objection = objection  # type: ignore[attr-defined]
  return policy


@_needs_population
def recalled(batch: Pair, population: Pair | None, map_: Map) -> Pair:
  """Returns the pair of the population as a constant.

  Before the first update, the pair of the batch takes the place. Training and
  inference then compute the same value. With the population `Interval`, this
  policy gives normalization at an interval.

  Source: Ioffe and Szegedy (2015), Section 2.
  """
  del map_
  assert population is not None
  steps = population.steps
  known = population._replace(steps=None)

  def choose(old, new):
    # An Explicit mesh may cut the two arrays differently, and `jnp.where`
    # refuses arrays with different cuts.
    old, new = jnp.broadcast_arrays(old, new)
    return jnp.where(steps > 0, meshes.cut_like(old, new), new)

  constant = jax.tree.map(choose, known, batch)
  return lax.stop_gradient(constant)


@_needs_population
def frozen(batch: Pair, population: Pair | None, map_: Map) -> Pair:
  """Returns the pair of the population as a constant, also before an update."""
  del batch, map_
  assert population is not None
  return lax.stop_gradient(population._replace(steps=None))


_OURS = __name__.partition('.')[0]

NAMES: dict[str, Gradient] = {
  'through': through,
  'stopped': stopped,
  'mean_only': mean_only,
  'spread_only': spread_only,
  'renormalized': Renormalized(),
  'recalled': recalled,
  'frozen': frozen,
}


def resolve(gradient: str | Gradient) -> Gradient:
  """Returns the policy of a name, or the policy of a function.

  Args:
    gradient: A name in `NAMES`, or a function of (batch, population, map) or of
      (batch, population).

  Raises:
    ValueError: If the name is unknown, or if the function takes neither three
      arguments nor two arguments.
  """
  if callable(gradient):
    # An inspection of the signature is slow, and layers of Flax resolve the
    # policy in eager code.
    is_ours = getattr(gradient, '__module__', '').startswith(_OURS)
    return gradient if is_ours else _of_a_user(gradient)
  if gradient not in NAMES:
    raise ValueError(
      f'gradient={gradient!r} is not a gradient policy; use one of '
      f'{", ".join(NAMES)}, or a function of (batch, population, map).'
    )
  return NAMES[gradient]


@dataclasses.dataclass(frozen=True)
class WithoutMap(Axis):
  """A policy from a function of two pairs, without the map.

  Attributes:
    function: A function of (batch, population).
  """

  function: Callable[[Pair, Pair | None], Pair]

  def __call__(self, batch: Pair, population: Pair | None, map_: Map) -> Pair:
    """Returns the result of the function for the two pairs."""
    del map_
    return self.function(batch, population)


def _of_a_user(gradient: Callable[..., Any]) -> Gradient:
  """Returns a policy with three arguments, from the function of a user.

  Args:
    gradient: A function of (batch, population, map) or (batch, population).

  Raises:
    ValueError: If the function takes neither three arguments nor two.
  """
  signature = inspect.signature(gradient)
  for count in (3, 2):
    try:
      signature.bind(*(None,) * count)
    except TypeError:
      continue
    return gradient if count == 3 else WithoutMap(gradient)
  raise ValueError(
    f'gradient={gradient} takes neither three arguments nor two; a gradient '
    'policy is a function of (batch, population, map), see norms.axes.Gradient.'
  )
