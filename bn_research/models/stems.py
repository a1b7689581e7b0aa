"""First layers on patches of the image, for the section `config.model.stem`."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bn_research import norms, ranges
from bn_research.layers import nnx as layers
from bn_research.models.convolution import HE

StemFactory = Callable[..., Any]
"""A function `stem(num_inputs, dtype=dtype, rngs=rngs)` of the channels.

The result is a convolution without a bias; the attribute `out_features` is the
number of channels of the result. The norm after the stem adds the bias.
"""


def learned(kernel_size: int = 2) -> StemFactory:
  """Returns a convolution that is trained, of the shape of `whitened_patches`.

  Args:
    kernel_size: Height and width k of the patches. The convolution has no
      padding, and 2 k² · channels outputs.

  Returns:
    A factory, see `StemFactory`.

  Raises:
    ValueError: If the size is not positive.
  """
  ranges.whole(1, 2**10, kernel_size=kernel_size)

  def stem(
    num_inputs: int, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs
  ) -> nnx.Conv:
    return nnx.Conv(
      num_inputs,
      2 * kernel_size**2 * num_inputs,
      (kernel_size, kernel_size),
      padding='VALID',
      use_bias=False,
      kernel_init=HE,
      dtype=dtype,
      rngs=rngs,
    )

  return stem


def whitened_patches(
  kernel_size: int = 2,
  epsilon: float = 5e-4,
  num_examples: int = 5000,
) -> StemFactory:
  """Returns a convolution that whitens patches, and is not trained.

  Before the first step, the convolution is fitted to training inputs.

  Args:
    kernel_size: Height and width k of the patches. The convolution has no
      padding, and 2 k² · channels outputs: each principal axis of the patches,
      by descending variance, and the same with the other sign.
    epsilon: The number to add to the variances, in squared units of the input.
    num_examples: The number of training examples to fit to, or all if there are
      fewer.

  Returns:
    A factory, see `StemFactory`.

  Raises:
    ValueError: If an option is out of range.

  Source: Jordan (2024), Section 3.2.
  """
  ranges.whole(1, 2**10, kernel_size=kernel_size)
  ranges.whole(1, 2**31, num_examples=num_examples)
  whiten = norms.Whiten('pca', epsilon=epsilon, relative=False)

  def stem(
    num_inputs: int, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs
  ) -> layers.WhitenedPatches:
    del rngs  # Nothing is random.
    return layers.WhitenedPatches(
      num_inputs,
      (kernel_size, kernel_size),
      whiten=whiten,
      num_examples=num_examples,
      use_bias=False,
      dtype=dtype,
    )

  return stem


STEMS = {'learned': learned, 'whitened_patches': whitened_patches}
"""Functions from options to a factory of first layers, by name."""
