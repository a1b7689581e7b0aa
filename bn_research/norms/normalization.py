"""A normalization: one choice on each of four axes, and two pure functions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import checks, gradients
from bn_research.norms.axes import (
  Axis,
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
  """x̂ = Norm(x, X): a scope, a map, a population and a gradient policy.

  `norms.axes` describes the four axes. `dataclasses.replace` returns a changed
  normalization. A normalization is a pytree; the leaves are the arrays in the
  four choices. A normalization without arrays compares, hashes, and can be a
  static argument of `jit`.

  Attributes:
    scope: The choice of the activations in X.
    map: The choice of the moments, and of the function that normalizes.
    population: The choice of the moments for inference; None to remember
      nothing.
    gradient: The choice of the moments that normalize, and of the derivatives
      to follow: a name in `gradients.NAMES`, or a policy.

  Raises:
    ValueError: If two choices do not fit; the message names both choices.
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
    # A name and the policy of the name must be equal for jit to compile once.
    object.__setattr__(self, 'gradient', gradients.resolve(self.gradient))
    if self.population is not None and not self.scope.shares:
      raise ValueError(
        'a population remembers statistics that examples share; '
        f'{self.scope} shares no statistics: leave {self.population} out.'
      )
    for choice in (self.scope, self.map, self.population, self.gradient):
      objection = getattr(choice, 'objection', None)
      if objection is not None and (sentence := objection(self)) is not None:
        raise ValueError(sentence)
    if self.scope.is_scheduled:
      raise ValueError(
        f'{self.scope} has a schedule, and a scope takes numbers only; give a '
        'number.'
      )
    for choice in (self.map, self.gradient):
      is_scheduled = getattr(choice, 'is_scheduled', False)
      if self.population is None and is_scheduled:
        raise ValueError(
          f'{choice} has a schedule, and nothing counts updates without a '
          'population; give a number, or a population such as Ema().'
        )

  @property
  def remembers(self) -> bool:
    """Whether a population remembers moments, for use at inference."""
    return self.population is not None

  @property
  def scales(self) -> bool:
    """Whether the result loses the scale of the activations."""
    return self.map.scales

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> dict[str, jax.Array]:
    """Returns an empty dict: only scale and bias are learned.

    Args:
      num_features: Unused.
      dtype: Unused.
    """
    del num_features, dtype
    return {}

  def init(
    self, num_features: int | tuple[int, ...], dtype: Any = jnp.float32
  ) -> State:
    """Returns the state before the first batch; () without a population.

    Args:
      num_features: Number of features, or the shape of the feature axes.
      dtype: Type of the statistics; use float64 for activations of float64.

    Returns:
      A NamedTuple that begins with the fields of `populations.Running`.
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

      y = x̂ · scale + bias

    Args:
      x: Activations (batch, ..., features), floating.
      state: The state from `init`, or from the last call. A dict with the same
        fields, for example from a checkpoint, is a state too.
      scale: None for 1, or floating and broadcastable against `x`.
      bias: None for 0, or floating and broadcastable against `x`.
      learned: Unused.
      use_running: Whether the moments of the population normalize, instead of
        the moments of `x`: False for training, True for inference.
      update: Whether the state learns from the moments of `x`. `update` and
        `use_running` are independent: a frozen normalization trains with
        `use_running=True` and `update=False`.
      mask: None, or boolean and broadcastable against `x`. False leaves an
        activation out of the statistics, and makes the result 0. A hidden
        activation may have any value, also NaN.
      dtype: Type of the result, floating; None for the type of `x`. The result
        is rounded once.

    Returns:
      An array of the shape of `x`, and the next state.

    Raises:
      TypeError: If `x` or `dtype` is not floating.
      ValueError: If the scope gives moments only, if shapes do not fit, if a
        batch without activations needs statistics, or if `use_running` needs a
        population and finds none.
    """
    del learned
    if not self.scope.joins:
      raise ValueError(
        f'{self.scope} gives moments only, because its sets overlap and do '
        'not join to activations; use measure, learn and norms.fold_into_next, '
        'or take Batch() for the scope.'
      )
    x, mask, scale, bias = checks.activations(x, mask, scale, bias)
    if x.size == 0 and (not update or self._is_defined(x.shape, use_running)):
      return jnp.zeros(x.shape, checks.result_type(x, dtype)), state
    state = self._checked(x, state, use_running)
    if dtype != x.dtype:
      dtype = checks.result_type(x, dtype)
    run = _apply if self.is_static else _apply_with_arrays
    update = bool(update) and self.population is not None
    y, moved = run(
      self, x, state, scale, bias, mask, bool(use_running), update, dtype
    )
    return y, moved if update else state

  def _is_defined(self, shape: tuple[int, ...], use_running: bool) -> bool:
    """Returns whether an empty `x` has a result without statistics of `x`.

    Args:
      shape: The shape of `x`, with a size of 0.
      use_running: Whether the moments of the population normalize.
    """
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
    map_, gradient = self.map, self.gradient
    population: Any = None
    if self.population is not None:
      if map_.is_scheduled:
        map_ = map_.at(state.steps)
      if isinstance(gradient, Axis):
        gradient = gradient.at(state.steps)
      # Most policies leave this pair unused. XLA then removes the computation,
      # for example the root of a covariance.
      population = self._recalled(state, x, map_)
    if use_running and not update:
      # Inference estimates nothing, so no axis is cut and no axis is pooled.
      view = View(x.shape, ())
      _, mask, scale, bias = view.split_call(x, mask, scale, bias)
      y = map_.finish(x, mask, population, scale, bias, dtype)
      return meshes.cut_like(y, x), ()
    view = self.scope.view(x, map_)
    z, w, scale, bias = view.split_call(x, mask, scale, bias)
    # A new statistic need not handle bfloat16, which is too narrow for sums.
    estimated = z if map_.ordinary else wide(z)
    moments = self.scope.moments(view, estimated, w, map_)
    # `jax.checkpoint` may then save moments, instead of repeating collectives.
    local, whole = tag_statistics(moments)
    # A cut gives the activations one more axis, and the pair must follow.
    if population is not None and view.cut is not None:
      mean, spread = map(view.split, population[:2])
      population = population._replace(mean=mean, spread=spread)
    pair: Any = population
    if not use_running:
      pair = gradient(map_.pair(local), population, map_)
    y = map_.finish(z, w, pair, scale, bias, dtype)
    y = y if view.cut is None else view.join(y)
    # `local` may belong to a ghost batch; a population learns from all rows.
    moved = self._learn(state, whole, map_) if update else ()
    # A map or a view may bring rows or channels together on an Explicit mesh.
    # The result must have the sharding of `x` again.
    return meshes.cut_like(y, x), moved

  def _recalled(self, state: State, x: jax.Array, map_: Map) -> Pair:
    """Returns the pair of the population, which broadcasts against `x`.

    Args:
      state: The state of the population.
      x: The activations.
      map_: The map, without schedules.
    """
    assert self.population is not None
    pair = self.population.recall(state, map_)
    mean, spread, _ = pair
    # A float16 state must not lower the precision, and a float64 state must not
    # raise the type of the arithmetic on `x`.
    within = wide_type(x)
    if mean is not None:
      mean = self.scope.expand(mean.astype(within), x.shape)
    if spread is not None:
      spread = self.scope.expand(spread.astype(within), x.shape)
    return Pair(mean, spread, state.steps)

  def measure(self, x: jax.Array, mask: jax.Array | None = None) -> Moments:
    """Returns the moments that normalize `x`.

    A normalization of each example loses the absolute scale, and the moments
    keep this scale. Later layers can use `mean` and √`variance` as `bias` and
    `scale` (Li et al., 2019), or as features (see `absolute_scale`).

    Args:
      x: Activations (batch, ..., features), floating.
      mask: None, or boolean and broadcastable against `x`. False leaves an
        activation out of the statistics.

    Returns:
      Moments in float32 or a wider type, broadcastable against `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If shapes do not fit, or if `x` has no activations.

    Source: Li et al. (2019).
    """
    x, mask, _, _ = checks.activations(x, mask, None, None)
    checks.not_empty(x)
    view = self.scope.view(x, self.map)
    z, w = view.split(x), view.split_mask(mask)
    z = z if self.map.ordinary else wide(z)
    local, _ = self.scope.moments(view, z, w, self.map)
    return jax.tree.map(view.spread, local)

  def learn(self, state: State, moments: Moments) -> State:
    """Returns the state after one more batch, from moments of the batch.

    Args:
      state: The state, or () without a population.
      moments: The moments of the whole batch. Each array has as many entries as
        the matching array of the state.
    """
    if self.population is None or (isinstance(state, tuple) and not state):
      return state
    return self._learn(state, moments, self.map.at(state.steps))

  def _learn(self, state: State, moments: Moments, map_: Map) -> State:
    assert self.population is not None
    # A derivative through the state would reach back to all earlier batches.
    count, mean, comoment = lax.stop_gradient(moments)
    # A scope keeps pooled axes with size 1, and a state has features only.
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


# Both functions run inline in an outer program. Outside of jit, each function
# compiles once per shape. Two functions are needed, because a normalization
# with arrays is no static argument.
_apply = jax.jit(Normalization._run, static_argnums=(0, 6, 7, 8), inline=True)
_apply_with_arrays = jax.jit(
  Normalization._run, static_argnums=(6, 7, 8), inline=True
)
