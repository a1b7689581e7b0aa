"""What becomes of the types of a drop-in layer's arrays."""

from typing import Any

import jax
from flax import nnx
from flax.nnx.nn import dtypes

Arrays = tuple[Any, ...]


def promote(
  layer: Any, x: jax.Array, statistics: Arrays, parameters: Arrays
) -> tuple[jax.Array, Arrays, Arrays, Any]:
  """Promotes by the layer's `promote_dtype`, unless it is Flax's own.

  Flax's own rounds activations and running statistics to `dtype` before
  anything is computed; instead, nothing is rounded before the end.

  Args:
    layer: Has `promote_dtype` and `dtype`.
    x: Activations.
    statistics: Running statistics.
    parameters: Scale and bias, or None.

  Returns:
    `x`, `statistics`, `parameters`, and the type of the layer's result.
  """
  given = (x, *statistics, *parameters)
  if layer.promote_dtype is dtypes.promote_dtype:
    dtype = dtypes.canonicalize_dtype(*given, dtype=layer.dtype)
    return x, statistics, parameters, dtype
  x, *others = layer.promote_dtype(given, dtype=layer.dtype)
  statistics = tuple(others[: len(statistics)])
  parameters = tuple(others[len(statistics) :])
  dtype = dtypes.canonicalize_dtype(x, *parameters, dtype=layer.dtype)
  return x, statistics, parameters, dtype


def value(parameter: nnx.Param | None) -> jax.Array | None:
  """Returns the array of a parameter that a layer may do without."""
  return None if parameter is None else parameter[...]
