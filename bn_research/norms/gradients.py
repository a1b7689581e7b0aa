"""The gradient axis: which moments normalize, and what of them is learned from.

A gradient policy is a function of two pairs and the map. The first pair is made
of the moments of the batch, the second of the state of the population (None if
nothing is remembered). The policy returns the pair that normalizes. A policy
thus decides the value and, with `stop_gradient`, what the optimizer sees of the
statistics.
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
  """The batch's moments, differentiated: normalization as published.

  Source: Ioffe and Szegedy (2015), Section 3.
  """
  del population, map_
  return batch


def stopped(batch: Pair, population: Pair | None, map_: Map) -> Pair:
  """The batch's moments as constants: the mistake that Section 2 warns of.

  A step then moves a bias that the next normalization takes out again: the
  loss stays, the bias grows without bound. Source: Ioffe and Szegedy (2015),
  Section 2.
  """
  del population, map_
  return lax.stop_gradient(batch)


def mean_only(batch: Pair, population: Pair | None, map_: Map) -> Pair:
  """The gradient passes through the mean; the spread is a constant."""
  del population, map_
  return batch._replace(spread=lax.stop_gradient(batch.spread))


def spread_only(batch: Pair, population: Pair | None, map_: Map) -> Pair:
  """The gradient passes through the spread; the mean is a constant."""
  del population, map_
  return batch._replace(mean=lax.stop_gradient(batch.mean))


@dataclasses.dataclass(frozen=True)
class Ramp:
  """A schedule: `initial` until `start`, then linear, `final` from `stop` on.

  Attributes:
    initial: First value.
    final: Last value.
    start: Updates after which the value begins to move.
    stop: Updates after which the value has arrived.
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
class Renormalized(Axis):
  """The population's value, clipped, with the batch's gradient.

    x̂ = (x - mean) / σ · r + d,    r = σ / σ_population within [1/r_max, r_max],
                       d = (mean - mean_population) / σ_population within ±d_max

  with r and d held constant in the gradient. Without clipping the value is that
  of inference, in training too. r = 1 and d = 0 is batch normalization. A map
  that does not centre has d = 0, a map that does not scale has σ = 1.

  Attributes:
    r_max: Bound of r, at least 1: a number, an array of shape (), or a function
      of the updates made so far. Infinity leaves out the clipping.
    d_max: Bound of d, at least 0; a number, an array or a function likewise.

  Source: Ioffe (2017), Algorithm 1.
  """

  numbers: ClassVar[tuple[str, ...]] = ('r_max', 'd_max')

  r_max: Schedule = 3.0
  d_max: Schedule = 5.0

  def __post_init__(self):
    for name, least in (('r_max', 1), ('d_max', 0)):
      in_range = lambda bound, least=least: bound >= least
      words = f'at least {least}'
      checks.number(name, getattr(self, name), in_range, words)

  def objection(self, normalization: Any) -> str | None:
    """Returns what does not fit: no population, or features taken together."""
    if normalization.population is None:
      return (
        f'renormalization needs running statistics, and {self} got none; give '
        'the normalization a population, such as Ema().'
      )
    if normalization.map.joint:
      return (
        f'{self} compares the deviations of single features, and '
        f'{normalization.map} takes features together; take recalled, or a map '
        'such as Standardize().'
      )
    return None

  def __call__(self, batch: Pair, population: Pair | None, map_: Map) -> Pair:
    """Returns the mean and deviation that give x̂ when they normalize."""
    assert population is not None  # or `objection` refuses
    present = self.at(population.steps)
    sigma, known = map_.deviation(batch), map_.deviation(population)
    like = jnp.asarray(sigma, jnp.result_type(batch.mean, batch.spread))
    r_max, d_max = (
      checks.number_of_type(bound, like)
      for bound in (present.r_max, present.d_max)
    )
    r = lax.stop_gradient(jnp.clip(sigma / known, 1 / r_max, r_max))
    mean = batch.mean
    if map_.centre:
      d = jnp.clip((mean - population.mean) / known, -d_max, d_max)
      mean = mean - lax.stop_gradient(d) * sigma / r
    return map_.divided_by(mean, sigma / r)


def _needs_population(policy: Gradient) -> Gradient:
  """Gives a function its objection to a normalization without population."""

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
  """The population's moments as constants; before the first, the batch's.

  Training then sees what inference sees. With a population that moves at
  intervals this is normalization at an interval (Ioffe and Szegedy, 2015,
  Section 2).
  """
  del map_
  assert population is not None
  steps = population.steps
  known = population._replace(steps=None)

  def choose(old, new):
    # An Explicit mesh may cut the two differently, which a select refuses.
    old, new = jnp.broadcast_arrays(old, new)
    return jnp.where(steps > 0, meshes.cut_like(old, new), new)

  constant = jax.tree.map(choose, known, batch)
  return lax.stop_gradient(constant)


@_needs_population
def frozen(batch: Pair, population: Pair | None, map_: Map) -> Pair:
  """The population's moments as constants, in training too."""
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
  """Returns the policy of that name, or the function itself.

  Raises:
    ValueError: For an unknown name, with a list of the names, or for a function
      that takes neither (batch, population, map) nor (batch, population).
  """
  if callable(gradient):
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
  """A policy that is a function of two pairs, and needs no map.

  Attributes:
    function: A function of (batch, population).
  """

  function: Callable[[Pair, Pair | None], Pair]

  def __call__(self, batch: Pair, population: Pair | None, map_: Map) -> Pair:
    """Returns what the function returns."""
    del map_
    return self.function(batch, population)


def _of_a_user(gradient: Callable[..., Any]) -> Gradient:
  """Returns a policy of the right arguments, made of a function of a user.

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
