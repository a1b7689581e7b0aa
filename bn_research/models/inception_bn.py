"""The Inception network of the Batch Normalization paper."""

from collections.abc import Sequence

import jax
from flax import nnx

from bn_research import ranges
from bn_research.models import nonlinearities
from bn_research.models.convolution import logits
from bn_research.models.inception_modules import (
  ENTRIES,
  Maker,
  Mixed,
  Row,
  Stem,
)
from bn_research.models.interface import (
  NormFactory,
  Tap,
  check_images,
  compute_type,
  untapped,
)
from bn_research.models.rematerialization import in_turn

# The figure prints projections of 128 channels for 4c and 4d; see the class.
FIGURE_5 = {
  '3a': Row(64, (64, 64), (64, 96), 'avg', 32),
  '3b': Row(64, (64, 96), (64, 96), 'avg', 64),
  '3c': Row(0, (128, 160), (64, 96), 'max', 0),
  '4a': Row(224, (64, 96), (96, 128), 'avg', 128),
  '4b': Row(192, (96, 128), (96, 128), 'avg', 128),
  '4c': Row(160, (128, 160), (128, 160), 'avg', 96),
  '4d': Row(96, (128, 192), (160, 192), 'avg', 96),
  '4e': Row(0, (128, 192), (192, 256), 'max', 0),
  '5a': Row(352, (192, 320), (160, 224), 'avg', 128),
  '5b': Row(352, (192, 320), (192, 224), 'max', 128),
}


class InceptionBN(nnx.Module):
  """The Inception network with a norm before each nonlinearity.

    layer:   h <- g(Norm(K * h))
    module:  h <- [1 x 1;  1 x 1, 3 x 3;  1 x 1, 3 x 3, 3 x 3;  pool, 1 x 1]

  A stem is followed by the ten modules 3a to 5b. A mean over positions and a
  dense layer give the logits. Without a norm each convolution has a bias, in
  the place of the norm.

  The published table contradicts itself. With the printed projections of 128
  channels, the modules 4c and 4d have 608 channels; the printed outputs have
  576. The option `pool_proj_4c_4d` chooses between both. The outputs of 3c and
  4e are printed with the height and width before the stride.

  The initial weights, zeros on both sides of an image as padding, and the entry
  'small' are choices of this project.

  The name for a `tap` is the place of the norm before the nonlinearity, as
  `'stem/input'` and `'mixed3a_1x1/input'`.

  Source: Ioffe and Szegedy (2015), Figure 5; Section 3.2, for the places of the
  norms; Section 4.2, for the networks that are compared.
  """

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    norm: NormFactory,
    rngs: nnx.Rngs,
    entry: str = 'separable',
    width: float = 1.0,
    pool_proj_4c_4d: int = 96,
    nonlinearity: str = 'relu',
    local_response_norm: bool = False,
    dropout: float = 0.0,
    dtype: str = 'float32',
    remat: bool = False,
  ):
    """Initializes the weights.

    Args:
      input_shape: The shape of an example, (height, width, channels).
      num_classes: Number of logits.
      norm: The factory of norms. The places are `'stem'`, `'conv2_reduce'`,
        `'conv2'`, and for each module, as far as the module has the layer,
        `'mixed3a_1x1'`, `'mixed3a_3x3_reduce'`, `'mixed3a_3x3'`,
        `'mixed3a_double_reduce'`, `'mixed3a_double_1'`, `'mixed3a_double_2'`
        and `'mixed3a_pool'`.
      rngs: Keys for the initializers and for dropout.
      entry: 'separable' for the published 7 x 7 convolution, separable with a
        depth multiplier of 8; 'plain' for a full 7 x 7 convolution; 'small' for
        small images: a 3 x 3 convolution without a stride, and no poolings
        before the modules.
      width: The factor of all numbers of channels, after rounding at least 1.
      pool_proj_4c_4d: Channels of the projections in 4c and 4d: 96 for the
        printed outputs of these modules, or 128 for the printed projections.
      nonlinearity: Name of g, for example 'sigmoid', or `module:attribute`.
      local_response_norm: Whether local response normalization follows the
        first pooling and precedes the second.
      dropout: The probability that dropout removes a feature before the last
        layer. In the published network without norms the probability is 0.4.
      dtype: Type of the computation, 'float32' or 'bfloat16'. Parameters,
        statistics and logits are float32.
      remat: Whether the backward pass computes the activations inside of a
        module again, in place of keeping the activations in memory.

    Raises:
      UserError: If the nonlinearity is unknown.
      ValueError: If the entry is unknown, if an option is out of range, or if
        the image is too small.
    """
    if entry not in ENTRIES:
      raise ValueError(f'entry={entry!r}; choose {" or ".join(ENTRIES)}')
    name = f'inception_bn with entry={entry!r}'
    check_images(name, input_shape, num_classes, least=ENTRIES[entry].least)
    ranges.positive(width=width)
    if pool_proj_4c_4d not in (96, 128):
      raise ValueError(f'pool_proj_4c_4d={pool_proj_4c_4d}; choose 96 or 128')
    ranges.weight_of_old(dropout=dropout)
    g = nonlinearities.find(nonlinearity)
    make = Maker(norm, g, width, compute_type(dtype), rngs)
    self.remat = remat
    self.stem = Stem(make, input_shape[-1], entry, local_response_norm)
    num_channels = make.channels(192)
    modules = []
    for name, row in FIGURE_5.items():
      if name in ('4c', '4d'):
        row = row._replace(projection=pool_proj_4c_4d)
      modules.append(Mixed(make, f'mixed{name}', row, num_channels))
      num_channels = modules[-1].num_channels
    self.mixed = nnx.List(modules)
    # A network without dropout has no random state in its checkpoints.
    dropped = nnx.Dropout(dropout, rngs=rngs) if dropout else None
    self.dropout = nnx.data(dropped)
    self.output = logits(num_channels, num_classes, rngs)

  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    tap: Tap = untapped,
  ) -> jax.Array:
    """Computes the logits; see `interface.Network`."""
    h = self.stem(x, train, tap)
    h = in_turn(self.mixed, h, train=train, tap=tap, remat=self.remat)
    h = h.mean((1, 2))
    if self.dropout is not None:
      h = self.dropout(h, deterministic=not train)
    return self.output(h)
