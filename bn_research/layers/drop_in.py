"""What the drop-in layers of both families share: the words of Flax, read.

A layer of Flax is described by its attributes (`axis`, `reduction_axes`,
`epsilon`, ...), which have the same names in flax.nnx and flax.linen. Here they
become a `Normalization`, and here are Flax's rules for types and shapes.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bn_research.norms import (
  Batch,
  Ema,
  Example,
  Normalization,
  Standardize,
  checks,
)
from bn_research.norms.combine import mapped
from bn_research.norms.scopes import canonical_axes

Axes = tuple[int, ...]


def axes(given: int | Iterable[int], ndim: int) -> Axes:
  """Returns axes ascending and non-negative; one named twice counts once."""
  given = given if isinstance(given, Iterable) else (given,)
  return tuple(sorted({canonical_axes(axis, ndim)[0] for axis in given}))


def batch_norm(layer: Any, ndim: int) -> Normalization:
  """Returns what a `BatchNorm` of Flax does to `ndim` axes."""
  return Normalization(
    Batch(axis=axes(layer.axis, ndim), **_devices(layer)),
    Standardize(epsilon=float(layer.epsilon)),
    Ema(float(layer.momentum), debias=False, unbiased=False),
  )


def layer_norm(layer: Any, ndim: int) -> Normalization:
  """Returns what a `LayerNorm` of Flax does to `ndim` axes."""
  return _per_example(layer, axes(layer.reduction_axes, ndim))


def rms_norm(layer: Any, ndim: int) -> Normalization:
  """Returns what an `RMSNorm` of Flax does to `ndim` axes."""
  return _per_example(layer, axes(layer.reduction_axes, ndim), centre=False)


def instance_norm(layer: Any, ndim: int) -> Normalization:
  """Returns what an `InstanceNorm` of Flax does to `ndim` axes."""
  features = axes(layer.feature_axes, ndim)
  if 0 in features:
    raise ValueError(
      f'feature_axes={layer.feature_axes} must not include the leading axis, '
      'which is that of the examples; name the axes of the channels.'
    )
  pooled = tuple(a for a in range(1, ndim) if a not in features)
  return _per_example(layer, pooled)


def group_norm(
  layer: Any, ndim: int, num_groups: int | None, group_size: int | None
) -> Normalization:
  """Returns what a `GroupNorm` of Flax does to `ndim` axes."""
  if num_groups is None and group_size is None:
    raise ValueError(
      'num_groups and group_size are both None; give one of them.'
    )
  pooled = layer.reduction_axes
  if pooled is None:
    pooled = (*range(1, ndim - 1), -1)
  groups = {'num_groups': num_groups, 'group_size': group_size}
  return _per_example(layer, axes(pooled, ndim), **groups)


def _per_example(layer, pooled: Axes, centre=True, **groups) -> Normalization:
  return Normalization(
    Example(pooled, **groups, **_devices(layer)),
    Standardize(centre=centre, epsilon=float(layer.epsilon)),
  )


def _devices(layer) -> dict[str, Any]:
  names = ('axis_name', 'axis_index_groups')
  return {name: getattr(layer, name) for name in names}


def on_one_device(normalization: Any) -> Any:
  """Returns the same without named axes, which need not be bound then."""
  return mapped(_alone, normalization)


def _alone(normalization: Any) -> Any:
  if not isinstance(normalization, Normalization):
    return _without_names(normalization)
  return dataclasses.replace(
    normalization, scope=_without_names(normalization.scope)
  )


def _without_names(value: Any) -> Any:
  names = {'axis_name', 'axis_index_groups'}
  given = {f.name: None for f in dataclasses.fields(value) if f.name in names}
  return dataclasses.replace(value, **given)


def apply(
  normalization: Normalization,
  x: jax.Array,
  state: Any = (),
  *,
  scale: jax.Array | None,
  bias: jax.Array | None,
  features: Axes,
  dtype: Any,
  **how: Any,
) -> tuple[jax.Array, Any]:
  """Calls `normalization.apply` by Flax's rules.

  Args:
    normalization: The normalization.
    x: Activations.
    state: Its state.
    scale: None, or of as many elements as the feature axes.
    bias: Likewise.
    features: The axes of `x` along which `scale` and `bias` lie.
    dtype: Type of the result. Everything before is in float32 at least, and
      there is one rounding. The backward pass keeps `x` in its own type.
    **how: Other arguments of `normalization.apply`.

  Returns:
    The result, and the next state.
  """
  checks.activations(x, None)  # before a cast makes floats of integers
  dtype = checks.result_type(x, dtype)
  if jnp.finfo(dtype).bits > 32:  # wider than statistics of a narrow x
    x = x.astype(jnp.promote_types(x.dtype, dtype))
  shape = [n if a in features else 1 for a, n in enumerate(x.shape)]
  return normalization.apply(
    x,
    state,
    scale=None if scale is None else fit(scale, shape, x, features),
    bias=None if bias is None else fit(bias, shape, x, features),
    dtype=dtype,
    **how,
  )


def running(
  normalization: Normalization,
  x: jax.Array,
  features: Axes,
  mean: jax.Array,
  var: jax.Array,
) -> Any:
  """Returns the state that is in two variables of Flax."""
  shape = [x.shape[a] for a in features]
  wide = jnp.promote_types(mean.dtype, jnp.float32)
  mean, var = (
    fit(leaf, shape, x, features).astype(wide) for leaf in (mean, var)
  )
  assert normalization.population is not None
  return normalization.population.init(mean, var)


def steps_behind(
  mean: jax.Array, var: jax.Array, momentum: float = 0.99
) -> jax.Array:
  """Returns how many updates running moments of Flax stand for, int32.

  Flax does not count them; a population that does would take trained moments
  for those of no batch, and forget them at its first update. An average of
  momentum m reaches back about 1 / (1 - m) batches.

  Args:
    mean: Running mean.
    var: Running variance.
    momentum: Of the average; Flax's own by default.
  """
  untouched = jnp.all(mean == 0) & jnp.all(var == 1)
  reach = round(1 / max(1 - momentum, 1e-6))
  return jnp.where(untouched, 0, reach).astype(jnp.int32)


def fit(
  value: jax.Array, shape: Sequence[int], x: jax.Array, features: Axes
) -> jax.Array:
  """Reshapes what a layer holds of the features to the axes of `x`.

  Raises:
    ValueError: If the layer was made for another number of features.
  """
  if value.size != math.prod(shape):
    raise misfit(x, features)
  return value.reshape(shape)


def misfit(x: jax.Array, features: Axes) -> ValueError:
  """Returns the error for a layer that was made for other features."""
  sizes = tuple(x.shape[a] for a in features)
  return ValueError(
    f'x of shape {x.shape} has features of shape {sizes} along axes {features},'
    ' and num_features of the layer is another; make the layer, or its '
    'variables, for the features of x.'
  )
