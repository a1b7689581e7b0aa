"""Residual networks for small images, with a norm at each published place."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import ranges
from bn_research.models.convolution import ConvNorm, logits
from bn_research.models.interface import (
  NormFactory,
  Tap,
  check_images,
  untapped,
)

_STAGES = (1, 2, 4)  # widths, in units of the width of the first stage


class ResNet(nnx.Module):
  """The residual network of depth 6n + 2 for images of 32 x 32 pixels.

    stem:   h <- ReLU(Norm(K * x))
    block:  h <- ReLU(shortcut(h) + Norm(K₂ * ReLU(Norm(K₁ * h))))

  Three stages of n blocks have `width`, 2 `width` and 4 `width` channels. The
  first block of the second and of the third stage halves the image. The
  shortcut of such a block takes every second position, and adds channels of
  zeros. A mean over positions and a dense layer give the logits. Without a norm
  each convolution has a bias, in the place of the norm.

  Source: He et al. (2016), Section 4.2, with shortcuts of option A.
  """

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    norm: NormFactory,
    rngs: nnx.Rngs,
    depth: int = 20,
    width: int = 16,
  ):
    """Initializes the weights.

    Args:
      input_shape: The shape of an example, (height, width, channels).
      num_classes: Number of logits.
      norm: The factory of norms. The places are `'stem'`, and for each block
        `'stage1_block1_norm1'` and `'stage1_block1_norm2'`.
      rngs: Keys for the initializers.
      depth: Number of layers with weights: 8, 14, 20, 26, ..., 56, ..., 110.
      width: Number of channels of the first stage.

    Raises:
      ValueError: If the depth is not 6n + 2, if the width is not positive, or
        if the image has less than 4 pixels along an axis.
    """
    ranges.whole(1, 2**16, width=width)
    if depth < 8 or (depth - 2) % 6:
      raise ValueError(f'depth={depth}; choose 6n + 2: 8, 14, 20, 32, 44, 56')
    check_images('resnet', input_shape, num_classes, least=4)
    self.stem = ConvNorm(
      norm, 'stem', input_shape[-1], width, strides=1, rngs=rngs
    )
    widths = [width * factor for factor in _STAGES]
    blocks = []
    num_inputs = width
    for (stage, features), block in itertools.product(
      enumerate(widths, 1), range(1, (depth - 2) // 6 + 1)
    ):
      strides = 2 if stage > 1 and block == 1 else 1
      place = f'stage{stage}_block{block}'
      blocks.append(
        Block(norm, place, num_inputs, features, strides=strides, rngs=rngs)
      )
      num_inputs = features
    self.blocks = nnx.List(blocks)
    self.output = logits(num_inputs, num_classes, rngs)

  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    tap: Tap = untapped,
  ) -> jax.Array:
    """Computes the logits.

    Args:
      x: (batch, height, width, channels) float.
      train: Whether the moments of the mini-batch normalize, and update the
        running moments. Otherwise the running moments normalize.
      tap: A function of the name and the value of the input of a nonlinearity:
        `'stem/input'`, `'stage1_block1/inner'` and `'stage1_block1/outer'`.

    Returns:
      (batch, num_classes) logits.
    """
    h = jax.nn.relu(tap('stem/input', self.stem(x, train)))
    for block in self.blocks:
      h = block(h, train, tap)
    return self.output(h.mean((1, 2)))


class Block(nnx.Module):
  """Two convolutions with norms, and a shortcut around both."""

  def __init__(
    self,
    norm: NormFactory,
    place: str,
    num_inputs: int,
    features: int,
    *,
    strides: int,
    rngs: nnx.Rngs,
  ):
    """Initializes the weights; see `ResNet`."""
    self.place = place
    self.strides = strides
    self.features = features
    make: Callable[..., ConvNorm] = lambda k, n, s: ConvNorm(
      norm, f'{place}_norm{k}', n, features, strides=s, rngs=rngs
    )
    self.first = make(1, num_inputs, strides)
    self.second = make(2, features, 1)

  def __call__(self, x: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Returns the result of the block, (batch, height, width, features)."""
    h = tap(f'{self.place}/inner', self.first(x, train))
    h = self.second(jax.nn.relu(h), train)
    return jax.nn.relu(tap(f'{self.place}/outer', self._shortcut(x) + h))

  def _shortcut(self, x: jax.Array) -> jax.Array:
    x = x[:, :: self.strides, :: self.strides]
    more = self.features - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))
