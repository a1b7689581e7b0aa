"""What a network is given: a factory of norms, and a tap for activations."""

from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

Tap = Callable[[str, jax.Array], jax.Array]
"""A function of the name and the value of the input of a nonlinearity.

The nonlinearity gets the result of the function.
"""

NormFactory = Callable[..., nnx.Module]
"""A function of a place and of a number of features, with options."""

_TYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def untapped(name: str, value: jax.Array) -> jax.Array:
  """Returns the value: the tap of a call that observes no activations."""
  del name
  return value


class Network(Protocol):
  """The call of a network."""

  def __call__(
    self, x: jax.Array, *, train: bool, tap: Tap = untapped
  ) -> jax.Array:
    """Computes the logits.

    Args:
      x: (batch, ...) float: examples, for most networks images of shape
        (batch, height, width, channels).
      train: Whether the moments of the mini-batch normalize, and update the
        running moments, and whether dropout is on. Otherwise the running
        moments normalize.
      tap: A function of the name and the value of the input of a nonlinearity.
        The network calls the function for each nonlinearity, and the
        nonlinearity gets the result. The docstring of a network lists the
        names.

    Returns:
      (batch, num_classes) logits, float32.
    """
    ...


def compute_type(dtype: str) -> jnp.dtype:
  """Returns the type in which a network computes.

  Parameters and statistics are float32 with either type.

  Args:
    dtype: `'float32'` or `'bfloat16'`.

  Raises:
    ValueError: If there is no such type.
  """
  if dtype not in _TYPES:
    raise ValueError(f'dtype={dtype!r}; choose {" or ".join(_TYPES)}')
  return jnp.dtype(_TYPES[dtype])


def check_images(
  name: str, input_shape: Sequence[int], num_classes: int, least: int
) -> None:
  """Checks that a network fits the images and the classes of a dataset.

  Args:
    name: The name of the network, for messages.
    input_shape: The shape of an example, (height, width, channels) if the
      examples are images.
    num_classes: The number of classes.
    least: The smallest height and width in pixels.

  Raises:
    ValueError: If the examples are no images, if an image is too small, or if
      there are less than two classes.
  """
  if len(input_shape) != 3 or min(input_shape[:2]) < least:
    raise ValueError(
      f'{name} needs images of at least {least} x {least} pixels, as (height,'
      f' width, channels), not {tuple(input_shape)}'
    )
  if num_classes < 2:
    raise ValueError(f'{name} needs at least 2 classes, not {num_classes}')
