"""Wide residual networks."""

from collections.abc import Sequence

from flax import nnx

from bn_research import ranges
from bn_research.models import interface
from bn_research.models.interface import NormFactory
from bn_research.models.residual import ResidualNetwork
from bn_research.models.residual_blocks import basic


def wide_resnet(
  *,
  input_shape: Sequence[int],
  num_classes: int,
  norm: NormFactory,
  rngs: nnx.Rngs,
  depth: int = 28,
  factor: int = 10,
  width: int = 16,
  dropout: float = 0.0,
  dtype: str = 'float32',
  remat: bool = False,
) -> ResidualNetwork:
  """Returns the wide residual network WRN-`depth`-`factor`.

  Three stages of n blocks have `factor` times `width`, 2 `width` and 4 `width`
  channels. Norm and nonlinearity are before each convolution. The shortcut
  between different shapes is a 1 x 1 convolution.

  Args:
    input_shape: The shape of an example, (height, width, channels).
    num_classes: Number of logits.
    norm: The factory of norms.
    rngs: Keys for the initializers and for dropout.
    depth: 6n + 4: 10, 16, 22, 28, 40.
    factor: The widening factor k.
    width: Number of channels of the stem.
    dropout: The part of the inputs of the second convolution of each block to
      set to zero in training; the paper has 0 and 0.3.
    dtype: Type of the computation, 'float32' or 'bfloat16'. Parameters and
      statistics are float32.
    remat: Whether the backward pass computes the activations of the blocks a
      second time, in place of keeping the activations.

  Returns:
    The network.

  Raises:
    ValueError: If a value is wrong, or if the network does not fit the images
      or the classes.

  Source: Zagoruyko and Komodakis (2016), Table 1 and Section 2.4.
  """
  if depth < 10 or (depth - 4) % 6:
    raise ValueError(f'depth={depth}; choose 6n + 4: 10, 16, 22, 28, 40')
  ranges.whole(1, 2**10, factor=factor)
  ranges.whole(1, 2**16, width=width)
  ranges.weight_of_old(dropout=dropout)
  interface.check_images('wide_resnet', input_shape, num_classes, least=4)
  num_blocks = (depth - 4) // 6
  return ResidualNetwork(
    input_shape=input_shape,
    num_classes=num_classes,
    norm=norm,
    rngs=rngs,
    width=width,
    stages=[(num_blocks, width * factor * times) for times in (1, 2, 4)],
    layers=basic,
    projects=True,
    preactivation=True,
    dropout=dropout,
    dtype=dtype,
    remat=remat,
  )
