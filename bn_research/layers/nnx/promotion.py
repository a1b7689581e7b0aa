"""The types of the arrays of a drop-in layer."""

from typing import Any

import jax
from flax import nnx
from flax.nnx.nn import dtypes

Arrays = tuple[Any, ...]


def promote(
  layer: Any, x: jax.Array, statistics: Arrays, parameters: Arrays
) -> tuple[jax.Array, Arrays, Arrays, Any]:
  """Converts the arrays of a layer by a custom `promote_dtype`, if any.

  The `promote_dtype` of Flax is not called. Flax would round activations and
  running statistics to `dtype` before the computation; here only the result is
  rounded.

  Args:
    layer: A layer with the attributes `promote_dtype` and `dtype`.
    x: Activations.
    statistics: Running statistics.
    parameters: Scale and bias, each an array or None.

  Returns:
    `x`, `statistics`, `parameters`, and the type of the result of the layer.
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
  """Returns the array of a parameter, or None if the layer has no parameter."""
  return None if parameter is None else parameter[...]


def is_variable(node: Any) -> bool:
  """Returns whether a node of a tree is a variable, where trees end."""
  return isinstance(node, nnx.Variable)


def array_of(variable: nnx.Variable) -> jax.Array:
  """Returns the array of a variable."""
  return variable[...]
