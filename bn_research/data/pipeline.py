"""From stored images to what a network sees, on the device."""

import math

import jax
import jax.numpy as jnp

from bn_research import errors


def to_input(images: jax.Array, binarize: float | None = None) -> jax.Array:
  """Scales images to `[0, 1]`, or reduces them to black and white.

  Meant for use inside `jit`, on one batch: data wait on the device as bytes, a
  quarter of the memory of float32, at the same speed.

  Args:
    images: Shape (batch, height, width, channels), dtype uint8.
    binarize: Threshold in `[0, 1]`: a pixel becomes 1 where its grey value,
      scaled to `[0, 1]`, is above it, and 0 elsewhere. None keeps the greys.

  Returns:
    Same shape as `images`, dtype float32.

  Raises:
    UserError: If the threshold is outside `[0, 1]`.

  Source: the binary input is that of section 4.1 of Ioffe and Szegedy (2015);
  the paper does not state its threshold.
  """
  if images.dtype != jnp.uint8:
    raise TypeError(f'images must be uint8, not {images.dtype}')
  if binarize is None:
    return images.astype(jnp.float32) / 255
  if not 0 <= binarize <= 1:
    raise errors.UserError(
      f'data.binarize={binarize} is outside [0, 1]; 0.5 halves the grey scale'
    )
  # Whole numbers compare the same in every program; scaled floats may not.
  return (images > math.floor(binarize * 255)).astype(jnp.float32)
