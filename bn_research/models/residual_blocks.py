"""Residual blocks, with the nonlinearities after or before the convolutions."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bn_research.models.convolution import ConvNorm, convolution
from bn_research.models.interface import NormFactory, Tap

# With a scale of zero in the last norm, a block begins as the identity. The
# scale exists for every norm, also for a norm that learns no scale otherwise.
_ZERO: dict[str, Any] = {
  'use_scale': True,
  'scale_init': nnx.initializers.zeros,
}


class Layer(NamedTuple):
  """A convolution of a block.

  Attributes:
    kernel: Height and width of the kernel.
    features: Number of channels of the result.
    strides: The distance between the positions of the kernel.
  """

  kernel: int
  features: int
  strides: int


def basic(features: int, strides: int) -> tuple[Layer, ...]:
  """Returns two 3 x 3 convolutions, of which the first halves the image."""
  return Layer(3, features, strides), Layer(3, features, 1)


def bottleneck(features: int, strides: int) -> tuple[Layer, ...]:
  """Returns a 1 x 1, a 3 x 3 and a 1 x 1 convolution to 4 `features` channels.

  The 3 x 3 convolution halves the image, as in all common implementations and
  in their published weights. He et al. (2016a) halve the image in the first
  1 x 1 convolution.
  """
  return (
    Layer(1, features, 1),
    Layer(3, features, strides),
    Layer(1, 4 * features, 1),
  )


class Block(nnx.Module):
  """A residual block with the nonlinearity after the norm and after the sum.

    h <- ReLU(shortcut(x) + Norm(K₂ * ReLU(Norm(K₁ * x))))

  Source: He et al. (2016a), Figures 2 and 5.
  """

  def __init__(
    self,
    norm: NormFactory,
    place: str,
    num_inputs: int,
    layers: Sequence[Layer],
    *,
    projects: bool,
    zero_init: bool,
    dtype: Dtype,
    rngs: nnx.Rngs,
  ):
    """Initializes the weights.

    Args:
      norm: The factory of norms.
      place: The name of the block.
      num_inputs: Number of channels of the input.
      layers: The convolutions.
      projects: Whether a shortcut between different shapes is a convolution
        with a norm; otherwise the shortcut adds channels of zeros.
      zero_init: Whether the scale of the last norm is zero at first.
      dtype: Type of the computation.
      rngs: Keys for the initializers.
    """
    self.place = place
    channels = (num_inputs, *(layer.features for layer in layers))
    self.layers = nnx.List(
      ConvNorm(
        norm,
        f'{place}_norm{k}',
        channels[k - 1],
        layer.features,
        layer.kernel,
        strides=layer.strides,
        dtype=dtype,
        rngs=rngs,
        **(_ZERO if zero_init and k == len(layers) else {}),
      )
      for k, layer in enumerate(layers, 1)
    )
    to = _change(num_inputs, layers)
    self.shortcut: ConvNorm | Zeros | None
    if to and projects:
      self.shortcut = ConvNorm(
        norm,
        f'{place}_shortcut',
        num_inputs,
        *(to.features, to.kernel),
        strides=to.strides,
        dtype=dtype,
        rngs=rngs,
      )
    else:
      self.shortcut = to and Zeros(to)

  def __call__(self, x: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Returns the result of the block, (batch, height, width, features)."""
    h = self.layers[0](x, train)
    for k, layer in enumerate(self.layers[1:], 1):
      h = layer(jax.nn.relu(tap(f'{self.place}/input{k}', h)), train)
    h = h + (x if self.shortcut is None else self.shortcut(x, train))
    return jax.nn.relu(tap(f'{self.place}/input{len(self.layers)}', h))


class PreactivationBlock(nnx.Module):
  """A residual block with norm and nonlinearity before each convolution.

    g = ReLU(Norm(x));  h <- shortcut + K₂ * ReLU(Norm(K₁ * g))

  The shortcut is x. Between different shapes, the shortcut is made from g.

  Source: He et al. (2016b), Figure 4(e) and the appendix.
  """

  def __init__(
    self,
    norm: NormFactory,
    place: str,
    num_inputs: int,
    layers: Sequence[Layer],
    *,
    projects: bool,
    is_first: bool,
    dropout: float,
    dtype: Dtype,
    rngs: nnx.Rngs,
  ):
    """Initializes the weights.

    Args:
      norm: The factory of norms.
      place: The name of the block.
      num_inputs: Number of channels of the input.
      layers: The convolutions.
      projects: Whether a shortcut between different shapes is a convolution;
        otherwise the shortcut adds channels of zeros.
      is_first: Whether the block is the first of the network. The input is then
        behind a norm and a nonlinearity already.
      dropout: The part of the inputs of the last convolution to set to zero.
      dtype: Type of the computation.
      rngs: Keys for the initializers and for dropout.
    """
    self.place = place
    channels = (num_inputs, *(layer.features for layer in layers))
    self.norms = nnx.List(
      norm(f'{place}_norm{k}', channels[k - 1], dtype=dtype, rngs=rngs)
      for k in range(2 if is_first else 1, len(layers) + 1)
    )
    self.is_first = is_first
    self.convs = nnx.List(
      convolution(n, f, kernel, strides=strides, dtype=dtype, rngs=rngs)
      for n, (kernel, f, strides) in zip(channels, layers, strict=False)
    )
    self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
    to = _change(num_inputs, layers)
    self.shortcut: nnx.Conv | Zeros | None
    if to and projects:
      self.shortcut = convolution(
        *(num_inputs, to.features, to.kernel),
        strides=to.strides,
        dtype=dtype,
        rngs=rngs,
      )
    else:
      self.shortcut = to and Zeros(to)

  def __call__(self, x: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Returns the result of the block, (batch, height, width, features)."""
    norms = iter(self.norms)

    def activated(k: int, h: jax.Array) -> jax.Array:
      h = next(norms)(h, use_running_average=not train)
      return jax.nn.relu(tap(f'{self.place}/input{k}', h))

    h = x if self.is_first else activated(1, x)
    short = x if self.shortcut is None else self.shortcut(h)
    for k, conv in enumerate(self.convs, 1):
      h = activated(k, h) if k > 1 else h
      if self.dropout is not None and k == len(self.convs):
        h = self.dropout(h, deterministic=not train)
      h = conv(h)
    return short + h


@dataclasses.dataclass(frozen=True)
class Zeros:
  """A shortcut that takes some positions, and adds channels of zeros.

  Attributes:
    to: The features and strides of the shortcut.

  Source: He et al. (2016a), Section 3.3, option A.
  """

  to: Layer

  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Returns (batch, height, width, features)."""
    del train
    x = x[:, :: self.to.strides, :: self.to.strides]
    more = self.to.features - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))


def _change(num_inputs: int, layers: Sequence[Layer]) -> Layer | None:
  """Returns a 1 x 1 convolution to the shape of the result; None if equal."""
  strides = max(layer.strides for layer in layers)
  features = layers[-1].features
  if strides == 1 and features == num_inputs:
    return None
  return Layer(1, features, strides)
