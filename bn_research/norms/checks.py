"""Errors that name the argument and the fix, in one place for every layer."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]


def activations(
  x: Any, mask: Any, scale: Any, bias: Any
) -> tuple[jax.Array, jax.Array | None, jax.Array | None, jax.Array | None]:
  """Returns the arrays of a call, checked against the activations `x`.

  Args:
    x: Activations, an array or an array-like value.
    mask: None, or an array to cast to bool.
    scale: None, or an array.
    bias: None, or an array.

  Returns:
    `x`, `mask`, `scale` and `bias` as arrays of JAX; None stays None.

  Raises:
    TypeError: If `x` is not floating.
    ValueError: If an array does not broadcast against `x`.
  """
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise _not_floating(x)
  arrays: list[Any] = [mask, scale, bias]
  for k, (name, value) in enumerate(
    (('mask', mask), ('scale', scale), ('bias', bias))
  ):
    if value is None:
      continue
    value = jnp.asarray(value, bool) if k == 0 else jnp.asarray(value)
    # Nearly all scales and biases have the shape of the features. This case
    # skips the loop over axes, because calls outside of jit feel the overhead.
    last = value.shape == x.shape[-1:]
    if not last and not broadcasts(value.shape, x.shape):
      raise ValueError(
        f'{name} of shape {value.shape} does not broadcast against x of shape '
        f'{x.shape}.'
      )
    arrays[k] = value
  return x, arrays[0], arrays[1], arrays[2]


def _not_floating(x: jax.Array) -> TypeError:
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    return TypeError(
      f'x is {x.dtype}; a normalization here is of real activations: give real '
      'and imaginary parts as features, jnp.concatenate([x.real, x.imag], -1).'
    )
  return TypeError(
    f'x is {x.dtype}; a normalization needs floating activations: call with '
    'x.astype(float32).'
  )


def not_empty(x: jax.Array) -> None:
  """Raises a ValueError if `x` has no activations to take statistics of."""
  if x.size == 0:
    raise ValueError(
      f'x of shape {x.shape} has no activations, and therefore no statistics; '
      'leave the empty batch out, or give full shapes and a mask.'
    )


def result_type(x: jax.Array, dtype: Any) -> Any:
  """Returns the type of a result.

  Args:
    x: The activations.
    dtype: The type of the result, or None for the type of `x`.

  Raises:
    TypeError: If `dtype` is not floating.
  """
  if dtype is None:
    return x.dtype
  if not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(
      f'dtype={jnp.dtype(dtype)} is not floating; choose a type such as '
      'float32, or None for that of x.'
    )
  # JAX reads `float` as float32 or float64, and reads float64 as float32 unless
  # float64 is enabled. An array of JAX has the type after this reading.
  return jnp.zeros((), dtype).dtype


def is_array(value: Any) -> bool:
  """Returns whether a value is an array of JAX (also traced) or of NumPy."""
  return isinstance(value, jax.Array | np.ndarray)


def is_non_negative(value: Any) -> bool:
  """Returns whether a number is in [0, inf)."""
  return 0 <= value < math.inf


def number(
  name: str,
  value: Any,
  is_right: Callable[[Any], bool],
  range_: str = 'finite and at least 0',
) -> None:
  """Checks an option that is a number, an array of shape (), or a schedule.

  Only a Python number has a check of the range. An array may be traced, and a
  schedule returns arrays, so the value of both may be unknown.

  Args:
    name: The name of the option.
    value: The value of the option.
    is_right: A function that returns whether a Python number is in range.
    range_: The range, in words.

  Raises:
    ValueError: If a number is out of range, if an array has axes, or if the
      value is no number.
  """
  if is_array(value) and np.shape(value) != ():
    raise ValueError(
      f'{name} is an array of shape {np.shape(value)}; give a number, or an '
      'array of shape ().'
    )
  if is_array(value) or callable(value):
    return
  if not isinstance(value, int | float | np.number) or not is_right(value):
    raise ValueError(f'{name}={value!r} must be {range_}.')


def wider(dtype: Any, than: Any = jnp.float32) -> Any:
  """Returns the wider of two floating types.

  `jnp.promote_types` fails if the user has forbidden silent promotion.
  """
  dtype, than = jnp.dtype(dtype), jnp.dtype(than)
  if dtype.itemsize == than.itemsize and dtype != than:
    return jnp.dtype('float32')  # of float16 and bfloat16 neither holds both
  return dtype if dtype.itemsize > than.itemsize else than


def number_of_type(value: Any, like: jax.Array) -> Any:
  """Casts an array to the type of `like`; returns a Python number unchanged."""
  # Next to an array, a Python number takes the type of the array anyway.
  return jnp.asarray(value, like.dtype) if is_array(value) else value


def divisor(channels: int, **values: int) -> None:
  """Checks numbers that must divide the number of channels.

  Args:
    channels: The number of channels.
    **values: Each option by name.

  Raises:
    ValueError: If a value is no divisor, is below 1, or is no integer.
  """
  for name, value in values.items():
    is_number = isinstance(value, int | np.integer)
    if not is_number or value < 1 or channels % value:
      raise ValueError(
        f'{name}={value} does not divide the number of channels, {channels}; '
        'choose a divisor.'
      )


def broadcasts(shape: Shape, to: Shape) -> bool:
  """Returns whether an array of shape `shape` broadcasts to the shape `to`."""
  if len(shape) > len(to):
    return False
  for size, wanted in zip(shape[::-1], to[::-1], strict=False):
    if size != 1 and size != wanted:
      return False
  return True


def no_running(use_running: bool) -> None:
  """Raises a ValueError if a call without running statistics needs some."""
  if use_running:
    raise ValueError(
      'use_running=True asks for running statistics, and this normalization '
      'remembers none; give it a population, such as Ema(), or call with '
      'use_running=False.'
    )


def state(
  given: Any, features: Shape, kind: type, init: Callable[[Shape], Any]
) -> Any:
  """Returns the state of the caller, after checks.

  Args:
    given: The argument of the caller. A dict with the fields of a state becomes
      a state.
    features: The shape of the features.
    kind: The class of the state.
    init: A function from a shape of features to a state.

  Raises:
    ValueError: If the state is missing, is no state, or belongs to a different
      shape of features.
  """
  if isinstance(given, tuple) and not given:
    size = features[0] if len(features) == 1 else features
    raise ValueError(
      'this normalization remembers statistics and got no state; call '
      f'apply(x, norm.init({size})).'
    )
  if type(given) is not kind:
    given = restored(given, jax.eval_shape(lambda: init(features)))
  if jnp.shape(given.mean) != features:
    raise ValueError(
      f'the state has num_features={jnp.shape(given.mean)} and x has features'
      f' of shape {features}; init with the number of features of x.'
    )
  return given


def restored(given: Any, like: Any) -> Any:
  """Turns a dict from a checkpoint into a state.

  Args:
    given: A state, or a dict; the fields may be dicts, too.
    like: A state of the same structure.

  Raises:
    ValueError: If `given` is no state and no dict with the fields of a state.
  """
  # Checkpoints store a NamedTuple as a dict, also inside of a longer state.
  names = getattr(like, '_fields', None)
  if names is None:
    return given
  if isinstance(given, type(like)):
    return given
  if isinstance(given, list | tuple) and len(given) == len(names):
    given = dict(zip(names, given, strict=True))
  # A checkpoint leaves out a field that is None.
  needed = {n for n in names if getattr(like, n) is not None}
  if isinstance(given, Mapping) and needed <= given.keys() <= set(names):
    return type(like)(
      *(restored(given.get(n), getattr(like, n)) for n in names)
    )
  found = sorted(given) if isinstance(given, Mapping) else type(given).__name__
  raise ValueError(
    f'the state is {found}; this normalization needs a {type(like).__name__} '
    f'with {", ".join(names)}, or a dict with the same names: see norm.init.'
  )
