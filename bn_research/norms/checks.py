"""Errors that name the argument and the fix, in one place for every layer."""

import math
from typing import Any

import jax
import jax.numpy as jnp

Shape = tuple[int, ...]


def activations(x: jax.Array, mask: jax.Array | None, **affine) -> None:
  """Checks the arrays of a call against the activations `x`.

  Raises:
    TypeError: If `x` is not floating.
    ValueError: If `x` is empty, or an array does not broadcast against it.
  """
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    raise TypeError(
      f'x is {x.dtype}; a normalization here is of real activations: give real '
      'and imaginary parts as features, jnp.concatenate([x.real, x.imag], -1).'
    )
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(
      f'x is {x.dtype}; a normalization needs floating activations: call with '
      'x.astype(float32).'
    )
  if x.size == 0:
    raise ValueError(
      f'x of shape {x.shape} has no activations, so it has no statistics; '
      'leave the empty batch out, or give full shapes and a mask.'
    )
  for name, value in {'mask': mask, **affine}.items():
    if value is not None and not _broadcasts(jnp.shape(value), x.shape):
      raise ValueError(
        f'{name} of shape {jnp.shape(value)} does not broadcast against x of '
        f'shape {x.shape}.'
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


def non_negative(**values: float) -> None:
  """Checks options that are numbers in [0, inf).

  Raises:
    ValueError: If one is negative, infinite or NaN.
  """
  for name, value in values.items():
    if not 0 <= value < math.inf:
      raise ValueError(f'{name}={value} must be finite and at least 0.')


def divisor(channels: int, **values: int) -> None:
  """Checks numbers that must divide the number of channels.

  Raises:
    ValueError: If one does not, or is less than 1.
  """
  for name, value in values.items():
    if value < 1 or channels % value:
      raise ValueError(
        f'{name}={value} does not divide the number of channels, {channels}; '
        'choose a divisor.'
      )


def _broadcasts(shape: Shape, to: Shape) -> bool:
  try:
    return jnp.broadcast_shapes(shape, to) == to
  except ValueError:
    return False


def state(state, features: Shape | None, use_running: bool) -> None:
  """Checks that the state is the one that the normalization remembers.

  Args:
    state: What the caller gave.
    features: Shape of the features; None where nothing is remembered.
    use_running: Whether running statistics are asked for.

  Raises:
    ValueError: If it is of other features, missing, or never existed.
  """
  if features is None:
    if use_running:
      raise ValueError(
        'use_running=True asks for running statistics, and this normalization '
        'remembers none; give it a population, such as Ema(), or call with '
        'use_running=False.'
      )
    return
  if state == ():
    raise ValueError(
      'this normalization remembers statistics and got no state; call '
      f'apply(x, norm.init({features[0] if len(features) == 1 else features}))'
      '.'
    )
  if state.mean.shape != features:
    raise ValueError(
      f'the state is of num_features={state.mean.shape} and x has features of '
      f'shape {features}; init with the number of features of x.'
    )
