"""The state of a population, and the one way in which a state moves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bn_research.norms.axes import Map
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.moments import Moments, Shape


class Running(NamedTuple):
  """What is remembered of the moments.

  All counts are floating, because people average whole collections of
  statistics over devices: an integer would come out as another type.

  Attributes:
    mean: Of the shape of the features, float32 by default.
    var: What the map remembers beside the mean: variances of the shape of the
      features, or covariances or matrices W of blocks of d channels,
      (blocks, d, d).
    steps: float32 (), how many updates were made.
    skipped: float32 (), how many updates were not made, because the moments
      were of too few activations, or not finite in the type of the state.
    weight: float32, what all updates so far weigh, as the population counts:
      shares of an average, () in [0, 1]; batches, (); or activations, of the
      shape of the features.
  """

  mean: jax.Array
  var: jax.Array
  steps: jax.Array
  skipped: jax.Array
  weight: jax.Array


jax.export.register_namedtuple_serialization(
  Running, serialized_name='bn_research.norms.Running'
)


def running_of(state: Any) -> Running:
  """Returns the part of a longer state that is a `Running`."""
  return Running(*state[: len(Running._fields)])


def first(map_: Map, features: Shape, dtype: Any) -> Running:
  """Returns the state before the first update.

  Args:
    map_: Says what is remembered before the first batch.
    features: Shape of the features.
    dtype: Type of mean and variance.
  """
  initial = map_.initial(features, dtype)
  wide = jnp.promote_types(dtype, jnp.float32)
  # An array of its own for each count: one buffer could not be donated twice.
  counts = (jnp.zeros((), t) for t in (jnp.float32, jnp.float32, wide))
  return Running(initial.mean, initial.variance, *counts)


def moved(
  state: Any,
  moments: Moments,
  map_: Map,
  rate: jax.Array,
  weight: jax.Array,
  unbiased: bool,
) -> Any:
  """Returns old + rate · (new - old), or the old state with one more skipped.

  Args:
    state: Begins with the fields of `Running`.
    moments: Of the batch, of the shape of the features.
    map_: Says what of the moments is remembered.
    rate: (), the weight of the new value.
    weight: The next `weight` of the state.
    unbiased: Whether variances are multiplied by n / (n - ddof).
  """
  ddof = map_.ddof if unbiased else 0
  remembered = map_.remember(moments.unbiased(ddof) if ddof else moments)
  mean = _stored_like(remembered.mean, state.mean)
  var = _stored_like(remembered.variance, state.var)
  sound = jnp.all(moments.count >= 1 + ddof) & _are_finite(mean, var)

  def move(old, new):
    wide = jnp.promote_types(old.dtype, rate.dtype)
    share = rate.astype(wide)
    change = (1 - share) * old.astype(wide) + share * new.astype(wide)
    # At rate 1 even an infinite old value is forgotten.
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
  """Returns the state with measured moments, and the counts that fit them.

  `steps` does not fall, because schedules of a trained model read it.
  """
  remembered = map_.remember(moments)
  return state._replace(
    mean=_stored_like(remembered.mean, state.mean),
    var=_stored_like(remembered.variance, state.var),
    steps=jnp.maximum(state.steps, batches.astype(state.steps.dtype)),
    weight=jnp.broadcast_to(weight, state.weight.shape).astype(
      state.weight.dtype
    ),
  )


def _stored_like(new: jax.Array, old: jax.Array) -> jax.Array:
  """Casts to the type of the state, and cuts as the state is cut.

  The cast comes before the check for finite numbers: a variance that float32
  holds may be infinite in float16. The cut matters on an Explicit mesh, where
  moments of features on several devices meet a state that each device has.
  """
  new = new.astype(old.dtype)
  is_cut = any(jax.typeof(new).sharding.spec) or any(
    jax.typeof(old).sharding.spec
  )
  return meshes.cut_like(new, old) if is_cut else new


def _are_finite(mean: jax.Array, var: jax.Array) -> jax.Array:
  size, spread = jnp.abs(mean), jnp.abs(var)
  if size.shape == spread.shape:
    # One pass: a layer of few features feels each launch of a reduction.
    return jnp.isfinite(jnp.max(jnp.maximum(size, spread), initial=0))
  largest = jnp.maximum(jnp.max(size, initial=0), jnp.max(spread, initial=0))
  return jnp.isfinite(largest)
