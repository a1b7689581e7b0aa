"""A convolution with a norm at a named place."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from bn_research.models.interface import NormFactory

HE = nnx.initializers.variance_scaling(2.0, 'fan_out', 'normal')
"""Gaussian, of variance 2 / (kernel area · channels out), for ReLU networks.

Source: He et al. (2015), Section 2.2, backward form.
"""


def convolution(
  num_inputs: int,
  features: int,
  kernel: int = 3,
  *,
  strides: int = 1,
  kernel_init: Initializer = HE,
  dtype: Dtype = jnp.float32,
  rngs: nnx.Rngs,
) -> nnx.Conv:
  """Returns a convolution without a bias, which keeps the size of the image.

  Args:
    num_inputs: Number of channels of the input.
    features: Number of channels of the result.
    kernel: Height and width of the kernel, odd. Zeros surround the image: half
      a kernel on each side.
    strides: The distance between the positions of the kernel, along each axis.
    kernel_init: Initializer of the kernel.
    dtype: Type of the computation. The kernel is float32.
    rngs: Keys for the initializers.
  """
  return nnx.Conv(
    num_inputs,
    features,
    (kernel, kernel),
    strides=strides,
    padding=kernel // 2,
    use_bias=False,
    kernel_init=kernel_init,
    dtype=dtype,
    rngs=rngs,
  )


class ConvNorm(nnx.Module):
  """A convolution, and the norm after the convolution: Norm(K * x).

  The convolution has no bias, because the norm adds the bias. The norm `none`
  adds the bias too.
  """

  def __init__(
    self,
    norm: NormFactory,
    place: str,
    num_inputs: int,
    features: int,
    kernel: int = 3,
    *,
    strides: int = 1,
    kernel_init: Initializer = HE,
    dtype: Dtype = jnp.float32,
    rngs: nnx.Rngs,
    **options: Any,
  ):
    """Initializes the weights.

    Args:
      norm: The factory of norms.
      place: The name of the place of the norm.
      num_inputs: Number of channels of the input.
      features: Number of channels of the result.
      kernel: Height and width of the kernel, odd.
      strides: The distance between the positions of the kernel.
      kernel_init: Initializer of the kernel.
      dtype: Type of the computation and of the result.
      rngs: Keys for the initializers.
      **options: Further arguments of the norm, for example `scale_init`.
    """
    self.conv = convolution(
      num_inputs,
      features,
      kernel,
      strides=strides,
      kernel_init=kernel_init,
      dtype=dtype,
      rngs=rngs,
    )
    self.norm = norm(place, features, dtype=dtype, rngs=rngs, **options)

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns (batch, height, width, features), of the type `dtype`."""
    return self.norm(self.conv(x), use_running_average=not train)


def logits(num_inputs: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Linear:
  """Returns the last layer of a network, which computes in float32.

  In bfloat16 the logits would have only three digits.

  Args:
    num_inputs: Number of features.
    num_classes: Number of logits.
    rngs: Keys for the initializers.
  """
  return nnx.Linear(num_inputs, num_classes, dtype=jnp.float32, rngs=rngs)
