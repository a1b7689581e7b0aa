"""A normalization: one choice on each of four axes, and two pure functions."""

import dataclasses
from functools import partial
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import checks, gradients, moments, standardize
from bn_research.norms.population import Population, Running, initial
from bn_research.norms.scopes import Scope

State: TypeAlias = Running | tuple[()]


class Map(Protocol):
  """What is done with the moments of the scope."""

  @property
  def scales(self) -> bool:
    """Whether a scale is taken away, for a layer to give back."""
    ...

  def estimate(self, x, mask, axes, devices) -> moments.Moments:
    """Estimates the moments that the map needs."""
    ...

  def initial(self, features: tuple[int, ...]) -> Running:
    """Returns the state of moments that map an activation to itself."""
    ...

  def pair(self, mean: jax.Array, var: jax.Array) -> gradients.Pair:
    """Makes of moments what `finish` needs."""
    ...

  def finish(self, x, mask, pair, scale, bias) -> jax.Array:
    """Normalizes, scales and shifts."""
    ...


@dataclasses.dataclass(frozen=True)
class Standardize:
  """Centres and divides by the deviation, or does one of the two.

    centre and scale    (x - mean) / √(var + ε)
    centre              x - mean
    scale               x / √(E x² + ε)

  Attributes:
    centre: Whether the mean is taken away; without, the second moment is about
      zero (root mean square).
    scale: Whether to divide.
    epsilon: Added to the second moment.
  """

  centre: bool = True
  scale: bool = True
  epsilon: float = 1e-5

  def __post_init__(self):
    if self.epsilon < 0:
      raise ValueError(f'epsilon={self.epsilon} must not be negative.')

  @property
  def scales(self) -> bool:
    """Whether the map takes a scale away."""
    return self.scale

  def estimate(self, x, mask, axes, devices) -> moments.Moments:
    """Estimates mean and variance, or the second moment about zero."""
    return moments.estimate(x, mask, axes, devices, self.centre)

  def initial(self, features: tuple[int, ...]) -> Running:
    """Returns mean 0 and variance 1, float32, of shape `features`."""
    return initial(jnp.zeros(features), jnp.ones(features))

  def pair(self, mean: jax.Array, var: jax.Array) -> gradients.Pair:
    """Returns (mean, var), None where the map does without."""
    return (mean if self.centre else None, var if self.scale else None)

  def finish(self, x, mask, pair, scale, bias) -> jax.Array:
    """Normalizes, scales and shifts, in one rule."""
    mean, var = pair
    return standardize.normalize(x, mask, mean, var, scale, bias, self.epsilon)


@dataclasses.dataclass(frozen=True)
class Normalization:
  """x̂ = Norm(x, X): scope, map, population and gradient.

  It prints itself, compares, hashes, can be a static argument of `jit`, and is
  changed with `dataclasses.replace`.

  Attributes:
    scope: Which activations are in X.
    map: What is done with the moments of X.
    population: What is remembered for inference; None for nothing.
    gradient: A policy of `gradients`: which moments normalize, and what of
      their derivative is learned from.
  """

  scope: Scope
  map: Map = Standardize()
  population: Population | None = None
  gradient: gradients.Gradient = gradients.through

  @property
  def remembers(self) -> bool:
    """Whether there are moments of a population to normalize with."""
    return self.population is not None

  def init(self, num_features: int | tuple[int, ...]) -> State:
    """Returns the state before the first batch; () if nothing is remembered.

    Args:
      num_features: Number of features, or the shape of the feature axes.
    """
    if self.population is None:
      return ()
    shape = (num_features,) if isinstance(num_features, int) else num_features
    return self.map.initial(tuple(shape))

  def apply(
    self,
    x: jax.Array,
    state: State = (),
    *,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    use_running: bool = False,
    update: bool = True,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, State]:
    """Normalizes `x`.

    Args:
      x: Activations (batch, ..., features), floating.
      state: From `init`, or the last call.
      scale: None, or broadcastable against `x`: multiplies the result.
      bias: None, or broadcastable against `x`: added to the result.
      use_running: Whether the population's moments normalize, instead of those
        of `x`. Training False, inference True.
      update: Whether the state learns from the moments of `x`. Independent of
        `use_running`: a frozen normalization trains with (True, False).
      mask: None, or boolean and broadcastable against `x`: where False, `x`
        takes no part, may hold anything, and the result is 0.

    Returns:
      An array like `x`, in its type, and the next state.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If shapes do not fit, `x` has no activations, or running
        moments are asked for where none are remembered.
    """
    x = jnp.asarray(x)
    mask = None if mask is None else jnp.asarray(mask, bool)
    checks.activations(x, mask, scale=scale, bias=bias)
    features = self.scope.features(x.shape) if self.remembers else None
    checks.state(state, features, use_running)
    return self._apply(x, state, scale, bias, mask, use_running, update)

  @partial(jax.jit, static_argnums=(0, 6, 7), inline=True)
  def _apply(self, x, state, scale, bias, mask, use_running, update):
    view = self.scope.view(x)
    z, w, scale, bias = jax.tree.map(view.split, (x, mask, scale, bias))
    population = self._population_pair(state, view) if self.remembers else None
    pair = population
    if update or not use_running:
      local, whole = self.scope.moments(view, z, w, self.map.estimate)
    if not use_running:
      batch = self.map.pair(local.mean, local.variance)
      pair = self.gradient(batch, population)
    y = view.join(self.map.finish(z, w, pair, scale, bias))
    if update and self.population is not None:
      state = _learn(self.population, state, whole)
    return y, state

  def _population_pair(self, state, view):
    mean, var = (self.scope.expand(a, view.shape) for a in state[:2])
    return self.map.pair(view.split(mean), view.split(var))


def _learn(population, state, whole):
  """Updates a state with moments brought to the shape of the features."""
  count = jnp.broadcast_to(whole.count, whole.mean.shape)
  shaped = moments.Moments(
    count.reshape(state.mean.shape),
    whole.mean.reshape(state.mean.shape),
    whole.comoment.reshape(state.var.shape),
  )
  return population.update(state, lax.stop_gradient(shaped))
