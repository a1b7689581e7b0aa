"""Residual networks by depth: for small images, and for ImageNet."""

from collections.abc import Sequence

from flax import nnx

from bn_research import ranges
from bn_research.models import interface
from bn_research.models.interface import NormFactory
from bn_research.models.residual import ResidualNetwork
from bn_research.models.residual_blocks import basic, bottleneck

# He et al. (2016a), Table 1: the layers of a block, and the number of blocks.
_IMAGENET = {
  18: (basic, (2, 2, 2, 2)),
  34: (basic, (3, 4, 6, 3)),
  50: (bottleneck, (3, 4, 6, 3)),
  101: (bottleneck, (3, 4, 23, 3)),
  152: (bottleneck, (3, 8, 36, 3)),
}


def resnet(
  *,
  input_shape: Sequence[int],
  num_classes: int,
  norm: NormFactory,
  rngs: nnx.Rngs,
  depth: int = 20,
  width: int = 16,
  preactivation: bool = False,
  zero_init: bool = False,
  dtype: str = 'float32',
  remat: bool = False,
) -> ResidualNetwork:
  """Returns the residual network of depth 6n + 2 for images of 32 x 32 pixels.

  Three stages of n blocks have `width`, 2 `width` and 4 `width` channels. A
  block has two 3 x 3 convolutions. The shortcut between stages takes every
  second position, and adds channels of zeros.

  Args:
    input_shape: The shape of an example, (height, width, channels).
    num_classes: Number of logits.
    norm: The factory of norms.
    rngs: Keys for the initializers.
    depth: Number of layers with weights: 8, 14, 20, 26, ..., 56, ..., 110.
    width: Number of channels of the first stage.
    preactivation: Whether norm and nonlinearity are before each convolution, as
      in He et al. (2016b), in place of after.
    zero_init: Whether the scale of the last norm of each block is zero at
      first, as in Goyal et al. (2017), Section 5.1. The last norm then has a
      scale, also if the norm otherwise learns no scale.
    dtype: Type of the computation, 'float32' or 'bfloat16'. Parameters and
      statistics are float32.
    remat: Whether the backward pass computes the activations of the blocks a
      second time, in place of keeping the activations.

  Returns:
    The network.

  Raises:
    ValueError: If a value is wrong, or if the network does not fit the images
      or the classes.

  Source: He et al. (2016a), Section 4.2, with shortcuts of option A.
  """
  if depth < 8 or (depth - 2) % 6:
    raise ValueError(f'depth={depth}; choose 6n + 2: 8, 14, 20, 32, 44, 56')
  ranges.whole(1, 2**16, width=width)
  interface.check_images('resnet', input_shape, num_classes, least=4)
  num_blocks = (depth - 2) // 6
  return ResidualNetwork(
    input_shape=input_shape,
    num_classes=num_classes,
    norm=norm,
    rngs=rngs,
    width=width,
    stages=[(num_blocks, width * factor) for factor in (1, 2, 4)],
    layers=basic,
    projects=False,
    preactivation=preactivation,
    zero_init=zero_init,
    dtype=dtype,
    remat=remat,
  )


def resnet_imagenet(
  *,
  input_shape: Sequence[int],
  num_classes: int,
  norm: NormFactory,
  rngs: nnx.Rngs,
  depth: int = 50,
  width: int = 64,
  small_images: bool = False,
  preactivation: bool = False,
  zero_init: bool = False,
  dtype: str = 'float32',
  remat: bool = False,
) -> ResidualNetwork:
  """Returns the residual network of depth 18, 34, 50, 101 or 152 for ImageNet.

  Four stages have `width` to 8 `width` channels, and with 50 layers or more 4
  times as many at the ends of blocks. The shortcut between different shapes is
  a 1 x 1 convolution. ResNet-18 with `small_images=True` is the usual network
  of this family for images of 32 x 32 pixels.

  Args:
    input_shape: The shape of an example, (height, width, channels).
    num_classes: Number of logits.
    norm: The factory of norms.
    rngs: Keys for the initializers.
    depth: Number of layers with weights: 18, 34, 50, 101 or 152.
    width: Number of channels of the stem.
    small_images: Whether the stem is a 3 x 3 convolution, for images of 32 x 32
      pixels. Otherwise the stem is a 7 x 7 convolution and a maximum, which
      together divide height and width by 4.
    preactivation: Whether norm and nonlinearity are before each convolution, as
      in He et al. (2016b), in place of after.
    zero_init: Whether the scale of the last norm of each block is zero at
      first, as in Goyal et al. (2017), Section 5.1. The last norm then has a
      scale, also if the norm otherwise learns no scale.
    dtype: Type of the computation, 'float32' or 'bfloat16'. Parameters and
      statistics are float32.
    remat: Whether the backward pass computes the activations of the blocks a
      second time, in place of keeping the activations.

  Returns:
    The network.

  Raises:
    ValueError: If a value is wrong, or if the network does not fit the images
      or the classes.

  Source: He et al. (2016a), Table 1, with shortcuts of option B. The 3 x 3
    convolution of a block halves the image, as in the common implementations.
  """
  if depth not in _IMAGENET:
    raise ValueError(
      f'depth={depth}; choose {", ".join(map(str, _IMAGENET))}; the name'
      " 'resnet' has the depths 6n + 2"
    )
  ranges.whole(1, 2**16, width=width)
  interface.check_images(
    f'resnet_imagenet with small_images={small_images}',
    *(input_shape, num_classes),
    least=8 if small_images else 32,
  )
  layers, counts = _IMAGENET[depth]
  return ResidualNetwork(
    input_shape=input_shape,
    num_classes=num_classes,
    norm=norm,
    rngs=rngs,
    width=width,
    stages=[(n, width * 2**stage) for stage, n in enumerate(counts)],
    layers=layers,
    projects=True,
    large_stem=not small_images,
    preactivation=preactivation,
    zero_init=zero_init,
    dtype=dtype,
    remat=remat,
  )
