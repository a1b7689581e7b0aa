"""A normalization: one choice on each of four axes, and two pure functions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import checks, gradients
from bn_research.norms.axes import (
  Gradient,
  Map,
  Pair,
  Population,
  Scope,
  State,
)
from bn_research.norms.pytrees import Node
from bn_research.norms.roots.tags import tag_statistics
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.moments import Moments, wide, wide_type
from bn_research.norms.statistics.views import View


@dataclasses.dataclass(frozen=True)
class Normalization(Node):
  """x̂ = Norm(x, X): scope, map, population and gradient.

  A normalization prints itself and is changed with `dataclasses.replace`. It is
  a pytree, whose leaves are the arrays in its choices. Without arrays a
  normalization compares, hashes, and can be a static argument of `jit`.

  Attributes:
    scope: Which activations are in X.
    map: What is done with the moments of X.
    population: What is remembered for inference; None for nothing.
    gradient: A policy of `gradients`: which moments normalize, and what of
      their derivative is learned from.

  Raises:
    ValueError: If two choices do not fit; the sentence names both.
  """

  scope: Scope
  map: Map
  population: Population | None = None
  gradient: Gradient = gradients.through

  def __post_init__(self):
    if not isinstance(self.scope, Scope):
      raise _not_a('scope', self.scope, Scope)
    if not isinstance(self.map, Map):
      raise _not_a('map', self.map, Map)
    if not isinstance(self.population, Population | None):
      raise _not_a('population', self.population, Population)
    object.__setattr__(self, 'gradient', gradients.resolve(self.gradient))
    for choice in (self.scope, self.map, self.population, self.gradient):
      objection = getattr(choice, 'objection', None)
      if objection is not None and (sentence := objection(self)) is not None:
        raise ValueError(sentence)
    if self.population is None and self.map.is_scheduled:
      raise ValueError(
        f'{self.map} has a schedule, and nothing counts updates without a '
        'population; give a number, or a population such as Ema().'
      )

  @property
  def remembers(self) -> bool:
    """Whether there are moments of a population to normalize with."""
    return self.population is not None

  @property
  def scales(self) -> bool:
    """Whether a scale is taken away, for a layer to give back."""
    return self.map.scales

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> dict[str, jax.Array]:
    """Returns what is learned beside scale and bias: nothing here."""
    del num_features, dtype
    return {}

  def init(
    self, num_features: int | tuple[int, ...], dtype: Any = jnp.float32
  ) -> State:
    """Returns the state before the first batch; () if nothing is remembered.

    Args:
      num_features: Number of features, or the shape of the feature axes.
      dtype: Type of the statistics; float64 for activations of float64.
    """
    if self.population is None:
      return ()
    shape = (num_features,) if isinstance(num_features, int) else num_features
    return self.population.init(self.map, tuple(shape), dtype)

  def apply(
    self,
    x: jax.Array,
    state: State = (),
    *,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    learned: Any = None,
    use_running: bool = False,
    update: bool = True,
    mask: jax.Array | None = None,
    dtype: Any = None,
  ) -> tuple[jax.Array, State]:
    """Normalizes `x`.

    Args:
      x: Activations (batch, ..., features), floating.
      state: From `init`, or from the last call. A dict of the same fields, as a
        restored checkpoint may hold it, is taken too.
      scale: None, or broadcastable against `x`: multiplies the result.
      bias: None, or broadcastable against `x`: added to the result.
      learned: Parameters as from `learned`; none here.
      use_running: Whether the population's moments normalize, instead of the
        moments of `x`. Training False, inference True.
      update: Whether the state learns from the moments of `x`. Independent of
        `use_running`: a frozen normalization trains with (True, False).
      mask: None, or boolean and broadcastable against `x`: where False, `x`
        takes no part, may hold anything, and the result is 0.
      dtype: Type of the result, to which the result is rounded once; None for
        the type of `x`.

    Returns:
      An array of the shape of `x`, and the next state.

    Raises:
      TypeError: If `x` or `dtype` is not floating.
      ValueError: If shapes do not fit, the statistics of an empty batch are
        asked for, or running moments where none are remembered.
    """
    del learned
    x, mask, scale, bias = checks.activations(x, mask, scale, bias)
    if x.size == 0 and self._is_defined(x.shape, use_running):
      return jnp.zeros(x.shape, checks.result_type(x, dtype)), state
    state = self._checked(x, state, use_running)
    dtype = checks.result_type(x, dtype)
    run = _apply if self.is_static else _apply_with_arrays
    update = bool(update) and self.population is not None
    y, moved = run(
      self, x, state, scale, bias, mask, bool(use_running), update, dtype
    )
    return y, moved if update else state

  def _is_defined(self, shape: tuple[int, ...], use_running: bool) -> bool:
    """Whether an empty batch needs no statistics that it does not have."""
    if use_running or not self.scope.shares:
      return True
    if not self.remembers and not self.map.needs_moments:
      return True
    return 0 in self.scope.features(shape)

  def _checked(self, x: jax.Array, state: State, use_running: bool) -> State:
    if x.size == 0:
      checks.not_empty(x)
    if self.population is None:
      checks.no_running(use_running)
      return state
    features, kind = self.scope.features(x.shape), self.population.state_type
    return checks.state(state, features, kind, self.init)

  def _run(self, x, state, scale, bias, mask, use_running, update, dtype):
    map_: Map = self.map
    population: Any = None
    if self.population is not None:
      if map_.is_scheduled:
        map_ = map_.at(state.steps)
      population = self._recalled(state, x, map_)
    if use_running and not update:
      view = View(x.shape, ())
      _, mask, scale, bias = view.split_call(x, mask, scale, bias)
      y = map_.finish(x, mask, population, scale, bias, dtype)
      return meshes.cut_like(y, x), ()
    view = self.scope.view(x, map_)
    z, w, scale, bias = view.split_call(x, mask, scale, bias)
    # A statistic of a user's own need not know that bfloat16 is too narrow.
    estimated = z if map_.ordinary else wide(z)
    moments = self.scope.moments(view, estimated, w, map_)
    local, whole = tag_statistics(moments)
    if population is not None and view.cut is not None:
      mean, spread = map(view.split, population[:2])
      population = population._replace(mean=mean, spread=spread)
    pair: Any = population
    if not use_running:
      pair = self.gradient(map_.pair(local), population, map_)
    y = map_.finish(z, w, pair, scale, bias, dtype)
    y = y if view.cut is None else view.join(y)
    moved = self._learn(state, whole, map_) if update else ()
    return meshes.cut_like(y, x), moved

  def _recalled(self, state: State, x: jax.Array, map_: Map) -> Pair:
    """Returns the population's pair, which broadcasts against `x`."""
    assert self.population is not None
    pair = self.population.recall(state, map_)
    mean, spread, _ = pair
    within = wide_type(x)
    if mean is not None:
      mean = self.scope.expand(mean.astype(within), x.shape)
    if spread is not None:
      spread = self.scope.expand(spread.astype(within), x.shape)
    return Pair(mean, spread, state.steps)

  def measure(self, x: jax.Array, mask: jax.Array | None = None) -> Moments:
    """Returns the moments that normalize `x`, broadcastable against it.

    They hold what a per-example normalization takes away, the absolute scale:
    give `mean` and √`variance` to later layers as `bias` and `scale` (Li et
    al., 2019), or as features (see `absolute_scale`).
    """
    x, mask, _, _ = checks.activations(x, mask, None, None)
    checks.not_empty(x)
    view = self.scope.view(x, self.map)
    z, w = view.split(x), view.split_mask(mask)
    z = z if self.map.ordinary else wide(z)
    local, _ = self.scope.moments(view, z, w, self.map)
    return jax.tree.map(view.spread, local)

  def learn(self, state: State, moments: Moments) -> State:
    """Returns the state after one more batch, given the batch's moments."""
    if self.population is None or (isinstance(state, tuple) and not state):
      return state
    return self._learn(state, moments, self.map.at(state.steps))

  def _learn(self, state: State, moments: Moments, map_: Map) -> State:
    assert self.population is not None
    count, mean, comoment = lax.stop_gradient(moments)
    count = jnp.broadcast_to(count, mean.shape)
    shaped = meshes.reshape_like(
      (count, mean, comoment), (state.mean, state.mean, state.var)
    )
    return self.population.update(state, Moments(*shaped), map_)


def _not_a(name: str, choice: Any, kind: type) -> ValueError:
  return ValueError(
    f'{name}={choice!r} is not a {kind.__name__.lower()}; give an instance of '
    f'norms.axes.{kind.__name__}.'
  )


# Both run inline in an outer program. Called eagerly, they compile once.
_apply = jax.jit(Normalization._run, static_argnums=(0, 6, 7, 8), inline=True)
_apply_with_arrays = jax.jit(
  Normalization._run, static_argnums=(6, 7, 8), inline=True
)
