"""A normalization: one choice on each of four axes, and two pure functions."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import checks
from bn_research.norms.gradients import Gradient, Pair, through
from bn_research.norms.populations.averages import Population
from bn_research.norms.roots.tags import tag_statistics
from bn_research.norms.scopes import Estimator, Scope
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.moments import Moments, Shape

State: TypeAlias = Any  # Running or alike; () where nothing is remembered

_NOTHING: Mapping[str, jax.Array] = MappingProxyType({})


class Map(Estimator, Protocol):
  """What is done with the moments of the scope."""

  @property
  def scales(self) -> bool:
    """Whether a scale is taken away, for a layer to give back."""
    ...

  def initial(self, features: Shape) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and variance with which nothing changes."""
    ...

  def pair(self, moments: Moments) -> Pair:
    """Makes of moments what `finish` needs."""
    ...

  def recall(self, mean: jax.Array, var: jax.Array) -> Pair:
    """Makes the same of what a population remembers."""
    ...

  def finish(self, x, mask, pair, scale, bias, dtype) -> jax.Array:
    """Normalizes, scales and shifts, with a result of type `dtype`."""
    ...


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
  map: Map
  population: Population | None = None
  gradient: Gradient = through

  @property
  def remembers(self) -> bool:
    """Whether there are moments of a population to normalize with."""
    return self.population is not None

  @property
  def scales(self) -> bool:
    """Whether a scale is taken away, for a layer to give back."""
    return self.map.scales

  def learned(self, num_features: int) -> dict[str, jax.Array]:
    """Returns what is learned beside scale and bias: nothing here."""
    del num_features
    return {}

  def init(self, num_features: int | tuple[int, ...]) -> State:
    """Returns the state before the first batch; () if nothing is remembered.

    Args:
      num_features: Number of features, or the shape of the feature axes.
    """
    if self.population is None:
      return ()
    shape = (num_features,) if isinstance(num_features, int) else num_features
    return self.population.init(*self.map.initial(tuple(shape)))

  def apply(
    self,
    x: jax.Array,
    state: State = (),
    *,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    learned: Mapping[str, jax.Array] = _NOTHING,
    use_running: bool = False,
    update: bool = True,
    mask: jax.Array | None = None,
    dtype: Any = None,
  ) -> tuple[jax.Array, State]:
    """Normalizes `x`.

    Args:
      x: Activations (batch, ..., features), floating.
      state: From `init`, or the last call.
      scale: None, or broadcastable against `x`: multiplies the result.
      bias: None, or broadcastable against `x`: added to the result.
      learned: Parameters as from `learned`; none here.
      use_running: Whether the population's moments normalize, instead of those
        of `x`. Training False, inference True.
      update: Whether the state learns from the moments of `x`. Independent of
        `use_running`: a frozen normalization trains with (True, False).
      mask: None, or boolean and broadcastable against `x`: where False, `x`
        takes no part, may hold anything, and the result is 0.
      dtype: Type of the result, to which it is rounded once; None for that of
        `x`.

    Returns:
      An array of the shape of `x`, and the next state.

    Raises:
      TypeError: If `x` or `dtype` is not floating.
      ValueError: If shapes do not fit, `x` has no activations, or running
        moments are asked for where none are remembered.
    """
    del learned
    x = jnp.asarray(x)
    mask = None if mask is None else jnp.asarray(mask, bool)
    checks.activations(x, mask, scale=scale, bias=bias)
    features = self.scope.features(x.shape) if self.remembers else None
    checks.state(state, features, use_running)
    dtype = checks.result_type(x, dtype)
    return self._apply(x, state, scale, bias, mask, use_running, update, dtype)

  @partial(jax.jit, static_argnums=(0, 6, 7, 8), inline=True)
  def _apply(self, x, state, scale, bias, mask, use_running, update, dtype):
    view = self.scope.view(x, self.map)
    z, w, scale, bias = jax.tree.map(view.split, (x, mask, scale, bias))
    population = self._population_pair(state, view) if self.remembers else None
    pair = population
    if update or not use_running:
      local, whole = tag_statistics(self.scope.moments(view, z, w, self.map))
    if not use_running:
      pair = self.gradient(self.map.pair(local), population)
    y = view.join(self.map.finish(z, w, pair, scale, bias, dtype))
    y = meshes.cut_like(y, x)
    if update and self.remembers:
      state = self.learn(state, whole)
    return y, state

  def _population_pair(self, state, view) -> Pair:
    mean, var = (
      view.split(self.scope.expand(leaf, view.shape))
      for leaf in (state.mean, state.var)
    )
    return self.map.recall(mean, var)._replace(steps=state.steps)

  def measure(self, x: jax.Array, mask: jax.Array | None = None) -> Moments:
    """Returns the moments that normalize `x`, broadcastable against it.

    They hold what a per-example normalization takes away, the absolute scale:
    give `mean` and √`variance` to later layers as `bias` and `scale` (Li et
    al., 2019), or as features (see `absolute_scale`).
    """
    x = jnp.asarray(x)
    mask = None if mask is None else jnp.asarray(mask, bool)
    checks.activations(x, mask)
    view = self.scope.view(x, self.map)
    z, w = jax.tree.map(view.split, (x, mask))
    local, _ = self.scope.moments(view, z, w, self.map)
    return jax.tree.map(view.spread, local)

  def learn(self, state: State, moments: Moments) -> State:
    """Returns the state after one more batch, given the batch's moments."""
    if self.population is None or state == ():
      return state
    count = jnp.broadcast_to(moments.count, moments.mean.shape)
    shaped = Moments(
      count.reshape(state.mean.shape),
      moments.mean.reshape(state.mean.shape),
      moments.comoment.reshape(state.var.shape),
    )
    return self.population.update(state, lax.stop_gradient(shaped))
