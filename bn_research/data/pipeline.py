"""Converts stored images to inputs of the network, on the device."""

import math

import jax
import jax.numpy as jnp

from bn_research import errors


def to_input(images: jax.Array, binarize: float | None = None) -> jax.Array:
  """Scales images to `[0, 1]`, or maps images to black and white.

  The function is for use inside `jit`, on a mini-batch. The dataset then stays
  on the device as bytes, which takes a quarter of the memory of float32 and is
  as fast.

  Args:
    images: (batch, height, width, channels) uint8.
    binarize: None for grey values, or a threshold in `[0, 1]`. A pixel becomes
      1 if the grey value, scaled to `[0, 1]`, is above the threshold. All
      further pixels become 0.

  Returns:
    An array of the shape of `images`, float32.

  Raises:
    TypeError: If the images are not uint8.
    UserError: If the threshold is outside `[0, 1]`.

  Source: Ioffe and Szegedy (2015), Section 4.1, for the binary input. The paper
  does not state a threshold.
  """
  if images.dtype != jnp.uint8:
    raise TypeError(f'images must be uint8, not {images.dtype}')
  if binarize is None:
    return images.astype(jnp.float32) / 255
  if not 0 <= binarize <= 1:
    raise errors.UserError(
      f'data.binarize={binarize} is outside [0, 1]; 0.5 halves the grey scale'
    )
  # Two compiled programs may round a scaled pixel in two ways, and then
  # disagree on the threshold. A comparison of whole numbers needs no rounding.
  return (images > math.floor(binarize * 255)).astype(jnp.float32)
