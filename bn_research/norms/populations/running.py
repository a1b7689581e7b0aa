"""The state of a population, and the one way in which a state moves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bn_research.norms import checks
from bn_research.norms.axes import Map, Population
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.moments import Moments, Shape


class Running(NamedTuple):
  """The remembered moments, and counts of the updates.

  Attributes:
    mean: The mean, of the shape of the features, float32 by default.
    var: The second remembered array of the map, of the type of `mean`:
      variances of the shape of the features, or covariances or matrices W of
      blocks of d channels, (blocks, d, d).
    steps: The number of updates, float32 ().
    skipped: The number of batches without an update, float32 (). The moments of
      a skipped batch were of too few activations, or were not finite in the
      type of the state.
    weight: The total weight of all updates, in float32 or a wider type. The
      weight of an average is a share, () in [0, 1]: 0 before the first update.
      The weight of a pool is a number of activations, of the shape of the
      features.
  """

  mean: jax.Array
  var: jax.Array
  # Counts are floating, because users average whole collections of statistics
  # over devices. An average would change the type of an integer.
  steps: jax.Array
  skipped: jax.Array
  weight: jax.Array


# `jax.export` refuses a NamedTuple without a registered name.
jax.export.register_namedtuple_serialization(
  Running, serialized_name='bn_research.norms.Running'
)


def running_of(state: Any) -> Running:
  """Returns the first fields of a longer state, as a `Running`."""
  return Running(*state[: len(Running._fields)])


class RunningPopulation(Population):
  """The base class of a population whose state is a `Running`.

  A subclass overrides `update`.
  """

  @property
  def state_type(self) -> type:
    """`Running`."""
    return Running

  def init(self, map_: Map, features: Shape, dtype: Any = jnp.float32):
    """Returns the state before the first update, with counts of 0."""
    initial = map_.initial(features, dtype)
    wide = checks.wider(dtype)
    # Each count needs a separate array: jit cannot donate one buffer twice.
    counts = (jnp.zeros((), t) for t in (jnp.float32, jnp.float32, wide))
    return Running(initial.mean, initial.variance, *counts)

  def adopt(
    self, state: Any, moments: Moments, map_: Map, batches: jax.Array
  ) -> Any:
    """Returns the state with weight 1, as after very many updates."""
    # With less weight, the next debiased update would replace the measurement.
    return adopted(state, moments, map_, batches, jnp.ones_like(state.weight))


def continued(old: Running, fresh: Running) -> Running:
  """Returns the moments of one population, with the weight of another.

  Args:
    old: The state of a population, with moments that the new population can
      use.
    fresh: The initial state of the new population, with the shapes of `old`
      except perhaps for `weight`.

  Returns:
    The state that the new population continues from: `fresh` if the new
    population counts activations and the old population does not.
  """
  if old.weight.shape == fresh.weight.shape:
    return old
  if fresh.weight.shape == fresh.mean.shape:
    return fresh  # Nobody knows how many activations an average has seen.
  # An average of one update or more has the full weight.
  share = jnp.minimum(old.steps, 1).astype(fresh.weight.dtype)
  return old._replace(weight=share)


def moved(
  state: Any,
  moments: Moments,
  map_: Map,
  rate: jax.Array,
  weight: jax.Array,
  unbiased: bool,
) -> Any:
  """Returns the state after an update, or after a skipped update.

    (1 - rate) · old + rate · new

  An update needs more than ddof activations for each feature, and finite
  moments. Otherwise only `skipped` changes.

  Args:
    state: A state that begins with the fields of `Running`.
    moments: The moments of the batch, of the shape of the features.
    map_: The map, whose `remember` decides which arrays are remembered.
    rate: The weight of the new value, ().
    weight: The next `weight` of the state.
    unbiased: Whether to multiply variances by n / (n - ddof).

  Returns:
    A state of the class, the shapes and the dtypes of `state`.
  """
  ddof = map_.ddof if unbiased else 0
  remembered = map_.remember(moments.unbiased(ddof) if ddof else moments)
  mean = _stored_like(remembered.mean, state.mean)
  var = _stored_like(remembered.variance, state.var)
  # An average never forgets a NaN, so one bad batch would end all inference.
  # One reduction instead of two where shapes allow it: with few features, a
  # reduction costs little more than the launch of a kernel.
  size, spread = jnp.abs(mean), jnp.abs(var)
  if size.shape != spread.shape:
    size, spread = jnp.max(size, initial=0), jnp.max(spread, initial=0)
  largest = jnp.max(jnp.maximum(size, spread), initial=0)
  sound = jnp.all(moments.count >= 1 + ddof) & jnp.isfinite(largest)

  def move(old, new):
    # A float16 state is rounded once, after arithmetic in a wider type.
    wide = rate.dtype
    if old.dtype != wide:
      wide = checks.wider(old.dtype, wide)
    share = rate.astype(wide)
    change = (1 - share) * old.astype(wide) + share * new.astype(wide)
    # A rate of 1 forgets the old value, but 0 · inf would be NaN.
    change = jnp.where(share == 1, new.astype(wide), change)
    return jnp.where(sound, change.astype(old.dtype), old)

  return state._replace(
    mean=move(state.mean, mean),
    var=move(state.var, var),
    steps=jnp.where(sound, state.steps + 1, state.steps),
    skipped=jnp.where(sound, state.skipped, state.skipped + 1),
    weight=jnp.where(sound, weight.astype(state.weight.dtype), state.weight),
  )


def adopted(
  state: Running,
  moments: Moments,
  map_: Map,
  batches: jax.Array,
  weight: jax.Array,
) -> Running:
  """Returns the state with measured moments.

  Args:
    state: The state so far, whose `skipped` stays.
    moments: The measured moments, of the shape of the features.
    map_: The map, whose `remember` decides which arrays are remembered.
    batches: The number of measured batches, ().
    weight: The next `weight` of the state, or ().

  Returns:
    A state of the shapes and the dtypes of `state`. `steps` is the larger of
    `batches` and the old `steps`.
  """
  remembered = map_.at(state.steps).remember(moments)
  return state._replace(
    mean=_stored_like(remembered.mean, state.mean),
    var=_stored_like(remembered.variance, state.var),
    # Schedules of a trained model read `steps`, which must not fall.
    steps=jnp.maximum(state.steps, batches.astype(state.steps.dtype)),
    weight=jnp.broadcast_to(weight, state.weight.shape).astype(
      state.weight.dtype
    ),
  )


def _stored_like(new: jax.Array, old: jax.Array) -> jax.Array:
  """Casts an array to the type of the state, with the sharding of the state.

  The cast comes before the check for finite numbers: a variance may be finite
  in float32 and infinite in float16. The sharding matters on an Explicit mesh:
  the moments may be spread over devices by features, while each device has the
  whole state.
  """
  new = new.astype(old.dtype)
  is_cut = any(jax.typeof(new).sharding.spec) or any(
    jax.typeof(old).sharding.spec
  )
  return meshes.cut_like(new, old) if is_cut else new
