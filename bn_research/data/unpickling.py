"""Reads the pickled dictionaries of CIFAR, without running code of the file."""

import io
import pickle
from typing import Any

import numpy as np


class _Dtype:
  """Stands for `numpy.dtype`, and accepts bytes only."""

  def __init__(self, code: Any, *_: Any):
    if code != b'u1':
      raise pickle.UnpicklingError(f'an array has the type {code!r}')

  def __setstate__(self, state: Any) -> None:
    """Ignores the order of the bytes, which a single byte does not have."""


class _Array:
  """Stands for `numpy.ndarray`: NumPy never sees the numbers of the file."""

  array = np.zeros(0, np.uint8)

  def __setstate__(self, state: Any) -> None:
    _, shape, dtype, is_fortran, content = state
    if not isinstance(dtype, _Dtype):
      raise pickle.UnpicklingError(f'an array has the type {dtype!r}')
    numbers = np.frombuffer(content, np.uint8)
    self.array = numbers.reshape(shape, order='F' if is_fortran else 'C')


def _reconstruct(*_: Any) -> _Array:
  """Stands for the function of NumPy that makes an empty array."""
  return _Array()


_GLOBALS: dict[tuple[str, str], Any] = {
  ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
  ('numpy', 'ndarray'): _Array,
  ('numpy', 'dtype'): _Dtype,
}


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _GLOBALS:
      raise pickle.UnpicklingError(f'it names {module}.{name}')
    return _GLOBALS[module, name]


def loads(content: bytes) -> dict[bytes, Any]:
  """Reads a dictionary that Python 2 pickled.

  A pickle is a program, and may call any function that the pickle names. This
  function knows three names only: the names in a pickled array of NumPy. An
  object of this module stands for each name.

  Args:
    content: The pickle.

  Returns:
    The dictionary. Texts are bytes, and arrays have the type uint8.

  Raises:
    ValueError: If the content is damaged, names anything else, or is no
      dictionary.
  """
  try:
    found = _Unpickler(io.BytesIO(content), encoding='bytes').load()
  except Exception as error:
    # A damaged pickle is a program of random instructions, which can raise any
    # error, for example a MemoryError.
    raise ValueError(f'the pickle cannot be read: {error}') from error
  if not isinstance(found, dict):
    raise ValueError(f'the pickle has a {type(found).__name__}, and no dict')
  return {
    key: value.array if isinstance(value, _Array) else value
    for key, value in found.items()
  }
