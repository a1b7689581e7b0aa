"""Calls of a normalization by the rules of Flax for types and shapes."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bn_research.norms import Normalization, Normalizer, Running, checks
from bn_research.norms.combination import mapped

Axes = tuple[int, ...]

# A NumPy array, because a JAX array would start a backend at import.
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
  """Calls `normalizer.apply` by the rules of Flax.

  Args:
    normalizer: A `norms.Normalization`, or a combination with the same methods.
    x: Activations, floating.
    state: The state of the normalizer; () if the normalizer has no state.
    scale: None, or an array with an element for each feature.
    bias: None, or an array with an element for each feature.
    features: The axes of `x` along which `scale` and `bias` lie.
    dtype: Type of the result. The computation is in float32 or wider, and only
      the result is rounded. The backward pass keeps `x` in the type of `x`.
    **switches: The remaining arguments of `normalizer.apply`.

  Returns:
    The result, of the shape of `x` and the type `dtype`, and the next state.

  Raises:
    TypeError: If `x` or `dtype` is not floating.
    ValueError: If the shape of an argument does not fit `x`.
  """
  if jnp.dtype(dtype).itemsize > 4 and jnp.dtype(dtype) != x.dtype:
    # The statistics of a narrow x would be less precise than the result. The
    # check comes first, because the cast would turn integers into floats.
    x = checks.activations(x, None, None, None)[0]
    x = x.astype(checks.wider(x.dtype, checks.result_type(x, dtype)))
  # An array along the last axis broadcasts without a reshape, and an eager call
  # spends time on every operation.
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
  """Returns the running statistics of a Flax layer as a state.

  All counts of the state are 0, because Flax counts no updates.

  Args:
    x: Activations.
    features: The feature axes of `x`.
    mean: Running mean, with an element for each feature.
    var: Running variance, with an element for each feature.

  Returns:
    A state whose mean and variance have the sizes of the feature axes.

  Raises:
    ValueError: If the layer was made for a different number of features.
  """
  shape = tuple(map(x.shape.__getitem__, features))
  if mean.shape != shape:
    mean = reshape_features(mean, shape, x, features)
  if var.shape != shape:
    var = reshape_features(var, shape, x, features)
  return Running(mean, var, _ZERO, _ZERO, _ZERO)


def reshape_features(
  value: jax.Array, shape: Sequence[int] | None, x: jax.Array, features: Axes
) -> jax.Array:
  """Reshapes an array that has an element for each feature of a layer.

  Args:
    value: The array, of any shape.
    shape: The new shape; None for the shape that broadcasts against `x`.
    x: Activations.
    features: The feature axes of `x`.

  Returns:
    The array with the new shape.

  Raises:
    ValueError: If the layer was made for a different number of features.
  """
  if shape is None:
    shape = [n if a in features else 1 for a, n in enumerate(x.shape)]
  if value.size != math.prod(shape):
    raise_mismatch(x, features)
  return value.reshape(shape)


def raise_mismatch(x: jax.Array, features: Axes) -> None:
  """Raises the error of a layer with a different number of features.

  Args:
    x: Activations.
    features: The feature axes of `x`.

  Raises:
    ValueError: In every call.
  """
  sizes = tuple(x.shape[a] for a in features)
  raise ValueError(
    f'x of shape {x.shape} has features of shape {sizes} along axes {features},'
    ' but the layer was made for a different number of features; make the '
    'layer, or the variables of the layer, for the features of x.'
  )


def counts_of(mean: jax.Array, var: jax.Array) -> dict[str, jax.Array]:
  """Returns the counts that a state adds to the moments of a Flax layer.

  Steps and weight are both 0 or both 1, and no batch is skipped.
  Moments at the initial values, mean 0 and variance 1, have the weight 0. Flax
  counts no updates. Without a weight, a debiased average would take trained
  moments for initial values, and would forget the trained moments.

  Args:
    mean: Running mean, (..., features).
    var: Running variance, (..., features).

  Returns:
    `steps`, `skipped` and `weight`, each float32 (...), with the axes along
    which models are stacked.
  """
  untouched = jnp.all((mean == 0) & (var == 1), axis=-1)
  weight = jnp.where(untouched, 0, 1).astype(jnp.float32)
  # Each count is a separate array, because a buffer cannot be donated twice.
  return {'steps': weight, 'skipped': 0 * weight, 'weight': jnp.copy(weight)}


def over_models(function: Callable[..., Any], ndim: int) -> Callable[..., Any]:
  """Maps a function over the leading axes along which models are stacked.

  Args:
    function: A function of pytrees of one model.
    ndim: The number of leading axes, 0 for a single model.

  Returns:
    The same function, of pytrees of all models.
  """
  for _ in range(ndim):
    function = jax.vmap(function)
  return function


def on_one_device(normalizer: Any) -> Any:
  """Returns the normalizer without named axes.

  Flax initializes a model outside of any map over devices, without a bound
  axis name.

  Args:
    normalizer: A `norms.Normalization`, or a combination.

  Returns:
    The same normalizer, which pools over no named axis.
  """
  return mapped(_alone, normalizer)


def _alone(normalizer: Any) -> Any:
  # A Normalization has the axis name in the scope. A layer beside the product,
  # such as EvoNormB0, has a field for the axis name.
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
