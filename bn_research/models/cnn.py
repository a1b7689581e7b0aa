"""A small convolutional network for quick runs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import ranges
from bn_research.models import interface, nonlinearities
from bn_research.models.convolution import ConvNorm, logits
from bn_research.models.interface import NormFactory, Tap


class CNN(nnx.Module):
  """A convolutional network of three layers, with a norm in each layer.

    h <- g(Norm(K * h))

  The convolutions are 3 x 3. Each convolution after the first halves the image.
  A mean over positions and a dense layer give the logits.

  A `tap` gets the names `'conv_1/input'`, `'conv_2/input'` and so on.
  """

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    norm: NormFactory,
    rngs: nnx.Rngs,
    widths: Sequence[int] = (16, 32, 64),
    nonlinearity: str = 'relu',
    dtype: str = 'float32',
  ):
    """Initializes the weights.

    Args:
      input_shape: The shape of an example, (height, width, channels).
      num_classes: Number of logits.
      norm: The factory of norms. The places are `'conv_1'`, `'conv_2'` and
        `'conv_3'`.
      rngs: Keys for the initializers.
      widths: Number of channels of each convolution. The default has 24,000
        parameters for colour images of 10 classes.
      nonlinearity: Name of g, for example 'relu', or `module:attribute`.
      dtype: Type of the computation, 'float32' or 'bfloat16'. Parameters and
        statistics are float32.

    Raises:
      UserError: If the nonlinearity is unknown.
      ValueError: If a value is wrong, or if the network does not fit the images
        or the classes.
    """
    if not widths:
      raise ValueError('widths=(); give the channels of a convolution at least')
    for width in widths:
      ranges.whole(1, 2**16, widths=width)
    least = 2 ** (len(widths) - 1)
    interface.check_images('cnn', input_shape, num_classes, least)
    compute = interface.compute_type(dtype)
    channels = (input_shape[-1], *widths)
    self.layers = nnx.List(
      ConvNorm(
        *(norm, f'conv_{k}', channels[k - 1], width),
        strides=1 if k == 1 else 2,
        dtype=compute,
        rngs=rngs,
      )
      for k, width in enumerate(widths, 1)
    )
    self.output = logits(channels[-1], num_classes, rngs)
    self.nonlinearity = nonlinearities.find(nonlinearity)

  def __call__(
    self, x: jax.Array, *, train: bool, tap: Tap = interface.untapped
  ) -> jax.Array:
    """Computes the logits; see `interface.Network`."""
    h = x
    for k, layer in enumerate(self.layers, 1):
      h = self.nonlinearity(tap(f'conv_{k}/input', layer(h, train)))
    return self.output(h.mean((1, 2), dtype=jnp.float32))
