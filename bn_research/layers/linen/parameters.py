"""The parameters of a linen layer, and one call of a drop-in layer."""

from typing import Any

import jax
from flax import errors
from flax.linen import dtypes

from bn_research.layers import calls
from bn_research.norms import Normalization


def normalize(
  layer: Any,
  normalization: Normalization,
  x: jax.Array,
  state: Any = (),
  *,
  features: calls.Axes,
  **switches: Any,
) -> tuple[jax.Array, Any]:
  """Declares the parameters, scale first, and applies.

  Args:
    layer: The linen module that is being called.
    normalization: What it does.
    x: Activations.
    state: The normalization's.
    features: The axes of `x` along which the parameters lie.
    **switches: Other arguments of `normalization.apply`.

  Returns:
    The result, and the next state.
  """
  scale = parameter(layer, 'scale', x, features) if layer.use_scale else None
  use_bias = getattr(layer, 'use_bias', False)  # RMSNorm has none
  bias = parameter(layer, 'bias', x, features) if use_bias else None
  if layer.is_initializing():
    normalization = calls.on_one_device(normalization)
  return calls.apply(
    normalization,
    x,
    state,
    scale=scale,
    bias=bias,
    features=features,
    dtype=dtypes.canonicalize_dtype(x, scale, bias, dtype=layer.dtype),
    **switches,
  )


def parameter(
  layer: Any, name: str, x: jax.Array, axes: calls.Axes
) -> jax.Array:
  """Declares a parameter of the shape of axes of `x`.

  Raises:
    ValueError: If there is one of another shape.
  """
  init = getattr(layer, f'{name}_init')
  shape = tuple(x.shape[a] for a in axes)
  try:
    return layer.param(name, init, shape, layer.param_dtype)
  except errors.ScopeParamShapeError:
    calls.raise_mismatch(x, axes)
    raise
