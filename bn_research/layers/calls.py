"""One call of a normalization by the rules of Flax for types and shapes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bn_research.norms import Normalization, Normalizer, Running, checks
from bn_research.norms.combine import mapped

Axes = tuple[int, ...]

_ZERO: Any = np.zeros((), np.float32)


def apply(
  normalizer: Normalizer,
  x: jax.Array,
  state: Any = (),
  *,
  scale: jax.Array | None,
  bias: jax.Array | None,
  features: Axes,
  dtype: Any,
  **switches: Any,
) -> tuple[jax.Array, Any]:
  """Calls `normalizer.apply` by Flax's rules.

  Args:
    normalizer: The normalization, or what has its calls.
    x: Activations.
    state: The state of the normalizer.
    scale: None, or of as many elements as the feature axes.
    bias: None, or of as many elements as the feature axes.
    features: The axes of `x` along which `scale` and `bias` lie.
    dtype: Type of the result. Everything before the result is in float32 at
      least, and there is one rounding. The backward pass keeps `x` in its type.
    **switches: Other arguments of `normalizer.apply`.

  Returns:
    The result, and the next state.
  """
  if jnp.dtype(dtype).itemsize > 4 and jnp.dtype(dtype) != x.dtype:
    # Statistics of a narrow x are narrower than the result is to be. The check
    # comes before the cast, which would make floats of integers.
    x = checks.activations(x, None, None, None)[0]
    x = x.astype(jnp.promote_types(x.dtype, checks.result_type(x, dtype)))
  # An array of the last axis broadcasts as it is.
  last = x.shape[-1:] if features == (x.ndim - 1,) else None
  if scale is not None and scale.shape != last:
    scale = reshape_features(scale, None, x, features)
  if bias is not None and bias.shape != last:
    bias = reshape_features(bias, None, x, features)
  return normalizer.apply(
    x, state, scale=scale, bias=bias, dtype=dtype, **switches
  )


def running(
  x: jax.Array, features: Axes, mean: jax.Array, var: jax.Array
) -> Running:
  """Returns the state that two variables of Flax hold, which counts nothing."""
  shape = tuple(map(x.shape.__getitem__, features))
  if mean.shape != shape:
    mean = reshape_features(mean, shape, x, features)
  if var.shape != shape:
    var = reshape_features(var, shape, x, features)
  return Running(mean, var, _ZERO, _ZERO, _ZERO)


def reshape_features(
  value: jax.Array, shape: Sequence[int] | None, x: jax.Array, features: Axes
) -> jax.Array:
  """Reshapes an array of the features of a layer.

  Args:
    value: An element for each feature.
    shape: The new shape; None for one that broadcasts against `x`.
    x: Activations.
    features: The feature axes of `x`.

  Raises:
    ValueError: If the layer was made for another number of features.
  """
  if shape is None:
    shape = [n if a in features else 1 for a, n in enumerate(x.shape)]
  if value.size != math.prod(shape):
    raise_mismatch(x, features)
  return value.reshape(shape)


def raise_mismatch(x: jax.Array, features: Axes) -> None:
  """Raises the ValueError of a layer that was made for other features."""
  sizes = tuple(x.shape[a] for a in features)
  raise ValueError(
    f'x of shape {x.shape} has features of shape {sizes} along axes {features},'
    ' and num_features of the layer is another; make the layer, or its '
    'variables, for the features of x.'
  )


def weight_of(mean: jax.Array, var: jax.Array) -> jax.Array:
  """Returns how much running moments of Flax weigh: 1, or 0 if untouched.

  Flax does not count updates. A population that forgets its initial value
  exactly would take trained moments for an initial value.

  Args:
    mean: Running mean, (..., features).
    var: Running variance, of the same shape.

  Returns:
    float32 (...): a weight for each model, where models are stacked.
  """
  untouched = jnp.all((mean == 0) & (var == 1), axis=-1)
  return jnp.where(untouched, 0, 1).astype(jnp.float32)


def on_one_device(normalizer: Any) -> Any:
  """Returns the same without named axes, which need not be bound then."""
  return mapped(_alone, normalizer)


def _alone(normalizer: Any) -> Any:
  if not isinstance(normalizer, Normalization):
    return _without_names(normalizer)
  scope = _without_names(normalizer.scope)
  return dataclasses.replace(normalizer, scope=scope)


def _without_names(value: Any) -> Any:
  names = {'axis_name', 'axis_index_groups'}
  given = {
    f.name: None
    for f in dataclasses.fields(value)
    if f.name in names and getattr(value, f.name) is not None
  }
  return dataclasses.replace(value, **given) if given else value
