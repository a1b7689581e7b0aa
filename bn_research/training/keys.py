"""Keys of random numbers among the arrays of a run."""

from typing import Any

import jax


def is_key(array: Any) -> bool:
  """Returns whether an array has keys of random numbers, which NumPy lacks.

  Args:
    array: An array, or its shape and type.
  """
  return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
