"""The parameters of a linen layer, and the call of a drop-in layer."""

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
  """Declares scale and bias of a layer, and normalizes.

  Args:
    layer: The linen module of the call.
    normalization: The normalization of the layer.
    x: Activations, floating.
    state: The state of the normalization; () if nothing is remembered.
    features: The axes of `x` along which the parameters lie.
    **switches: The remaining arguments of `normalization.apply`.

  Returns:
    The result, of the shape of `x`, and the next state.

  Raises:
    TypeError: If `x` is not floating.
    ValueError: If shapes do not fit.
  """
  # The scale comes first, as in Flax: the order of the declarations decides
  # the random keys of the initializers.
  scale = parameter(layer, 'scale', x, features) if layer.use_scale else None
  use_bias = getattr(layer, 'use_bias', False)  # RMSNorm has no bias.
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
  """Declares a parameter with the sizes of some axes of `x`.

  Args:
    layer: The linen module of the call.
    name: Name of the parameter, 'scale' or 'bias'.
    x: Activations.
    axes: The axes of `x` along which the parameter lies.

  Returns:
    The parameter, of the type `layer.param_dtype`.

  Raises:
    ValueError: If the layer has a parameter with a different shape.
  """
  init = getattr(layer, f'{name}_init')
  shape = tuple(x.shape[a] for a in axes)
  try:
    return layer.param(name, init, shape, layer.param_dtype)
  except errors.ScopeParamShapeError:
    calls.raise_mismatch(x, axes)
    raise  # Never reached, but a type checker misses a return value here.
