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
  """Raises a ValueError if statistics of no activations are asked for."""
  if x.size == 0:
    raise ValueError(
      f'x of shape {x.shape} has no activations, so it has no statistics; '
      'leave the empty batch out, or give full shapes and a mask.'
    )


def result_type(x: jax.Array, dtype: Any) -> Any:
  """Returns the type of a result: the one asked for, or None for that of `x`.

  Raises:
    TypeError: If it is not floating.
  """
  if dtype is None:
    return x.dtype
  if not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(
      f'dtype={jnp.dtype(dtype)} is not floating; choose a type such as '
      'float32, or None for that of x.'
    )
  # As JAX reads a type: of `float`, and of float64 where that is not enabled.
  return jnp.zeros((), dtype).dtype


def is_array(value: Any) -> bool:
  """Returns whether a value is an array of JAX or NumPy, traced or not."""
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

  An array may be traced, and a schedule gives arrays: for both the range is
  not checked.

  Args:
    name: Of the option.
    value: Of the option.
    is_right: Whether a Python number is in range.
    range_: The range, in words.

  Raises:
    ValueError: If a number is out of range, or an array is no scalar.
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


def number_of_type(value: Any, like: jax.Array) -> Any:
  """Casts an array to the type of `like`; a Python number takes any type."""
  return jnp.asarray(value, like.dtype) if is_array(value) else value


def divisor(channels: int, **values: int) -> None:
  """Checks numbers that must divide the number of channels.

  Raises:
    ValueError: If one does not, or is less than 1.
  """
  for name, value in values.items():
    is_number = isinstance(value, int)
    if not is_number or value < 1 or channels % value:
      raise ValueError(
        f'{name}={value} does not divide the number of channels, {channels}; '
        'choose a divisor.'
      )


def broadcasts(shape: Shape, to: Shape) -> bool:
  """Returns whether an array of one shape broadcasts to exactly another."""
  if len(shape) > len(to):
    return False
  for size, wanted in zip(shape[::-1], to[::-1], strict=False):
    if size != 1 and size != wanted:
      return False
  return True


def no_running(use_running: bool) -> None:
  """Raises a ValueError if running statistics are asked for that are none."""
  if use_running:
    raise ValueError(
      'use_running=True asks for running statistics, and this normalization '
      'remembers none; give it a population, such as Ema(), or call with '
      'use_running=False.'
    )


def state(
  given: Any, features: Shape, kind: type, init: Callable[[Shape], Any]
) -> Any:
  """Returns the state, checked: the one that the normalization remembers.

  Args:
    given: By the caller; a dict of the same fields becomes a state.
    features: Shape of the features.
    kind: Type of the state.
    init: Makes a state for a shape of features.

  Raises:
    ValueError: If the state is of other features, or missing, or no state.
  """
  if isinstance(given, tuple) and not given:
    size = features[0] if len(features) == 1 else features
    raise ValueError(
      'this normalization remembers statistics and got no state; call '
      f'apply(x, norm.init({size})).'
    )
  if type(given) is not kind:
    given = _restored(given, jax.eval_shape(lambda: init(features)))
  if jnp.shape(given.mean) != features:
    raise ValueError(
      f'the state is of num_features={jnp.shape(given.mean)} and x has features'
      f' of shape {features}; init with the number of features of x.'
    )
  return given


def _restored(given: Any, like: Any) -> Any:
  """Returns a dict, as checkpoints are restored, in the form of a state."""
  names = getattr(like, '_fields', None)
  if names is None:
    return given
  if isinstance(given, Mapping) and given.keys() == set(names):
    return type(like)(*(_restored(given[n], getattr(like, n)) for n in names))
  if isinstance(given, type(like)):
    return given
  found = sorted(given) if isinstance(given, Mapping) else type(given).__name__
  raise ValueError(
    f'the state is {found}; this normalization needs a {type(like).__name__} '
    f'with {", ".join(names)}, or a dict of these: see norm.init.'
  )
