"""The VGG networks, as used on images of 32 x 32 pixels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import ranges
from bn_research.models import interface, nonlinearities
from bn_research.models.convolution import HE, ConvNorm, logits
from bn_research.models.interface import NormFactory, Tap

# Simonyan and Zisserman (2015), Table 1: the number of convolutions of each
# stage, by the number of layers with weights. The columns are A, B, D and E.
_STAGES = {
  11: (1, 1, 2, 2, 2),
  13: (2, 2, 2, 2, 2),
  16: (2, 2, 3, 3, 3),
  19: (2, 2, 4, 4, 4),
}
_FACTORS = (1, 2, 4, 8, 8)


class VGG(nnx.Module):
  """The VGG network with a norm after each convolution, for small images.

    h <- g(Norm(K * h)), with the maximum over 2 x 2 pixels after each stage

  Five stages of 3 x 3 convolutions have 1, 2, 4, 8 and 8 times `width`
  channels. A mean over positions, which is a single position for images of
  32 x 32 pixels, is the input of the dense layers. The original has three dense
  layers for ImageNet. The papers on normalization have one (`hidden=0`, as in
  Huang et al., 2019) or two with a norm between (`hidden=512`, as in Huang et
  al., 2018).

  A `tap` gets the names `'stage1/input1'`, `'stage1/input2'` and so on, and
  `'hidden/input'`.

  Source: Simonyan and Zisserman (2015), Table 1; Santurkar et al. (2018),
    Section 2; Huang et al. (2018), Section 5.2; Huang et al. (2019), Section 5.
  """

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    norm: NormFactory,
    rngs: nnx.Rngs,
    depth: int = 16,
    width: int = 64,
    hidden: int = 0,
    nonlinearity: str = 'relu',
    dtype: str = 'float32',
  ):
    """Initializes the weights.

    Args:
      input_shape: The shape of an example, (height, width, channels).
      num_classes: Number of logits.
      norm: The factory of norms. The places are `'stage1_norm1'`,
        `'stage1_norm2'` and so on, and `'hidden'`.
      rngs: Keys for the initializers.
      depth: The name of the network by the number of layers in the original: 11
        (configuration A), 13 (B), 16 (D) or 19 (E).
      width: Number of channels of the first stage.
      hidden: Number of units of a hidden dense layer; 0 for no such layer.
      nonlinearity: Name of g, for example 'relu', or `module:attribute`.
      dtype: Type of the computation, 'float32' or 'bfloat16'. Parameters and
        statistics are float32.

    Raises:
      UserError: If the nonlinearity is unknown.
      ValueError: If a value is wrong, or if the network does not fit the images
        or the classes.
    """
    if depth not in _STAGES:
      raise ValueError(
        f'depth={depth}; choose {", ".join(map(str, _STAGES))} for the'
        ' configurations A, B, D and E'
      )
    ranges.whole(1, 2**16, width=width)
    ranges.whole(0, 2**16, hidden=hidden)
    interface.check_images('vgg', input_shape, num_classes, least=32)
    compute = interface.compute_type(dtype)
    features = input_shape[-1]
    self.stages: nnx.List[nnx.List[ConvNorm]] = nnx.List()
    for stage, count in enumerate(_STAGES[depth], 1):
      layers: nnx.List[ConvNorm] = nnx.List()
      for number in range(1, count + 1):
        place, inputs = f'stage{stage}_norm{number}', features
        features = width * _FACTORS[stage - 1]
        layers.append(
          ConvNorm(norm, place, inputs, features, dtype=compute, rngs=rngs)
        )
      self.stages.append(layers)
    self.hidden = hidden
    if hidden:
      self.dense = nnx.Linear(
        *(features, hidden),
        use_bias=False,
        kernel_init=HE,
        dtype=compute,
        rngs=rngs,
      )
      self.norm = norm('hidden', hidden, dtype=compute, rngs=rngs)
    self.output = logits(hidden or features, num_classes, rngs)
    self.nonlinearity = nonlinearities.find(nonlinearity)

  def __call__(
    self, x: jax.Array, *, train: bool, tap: Tap = interface.untapped
  ) -> jax.Array:
    """Computes the logits; see `interface.Network`."""
    h = x
    for stage, layers in enumerate(self.stages, 1):
      for number, layer in enumerate(layers, 1):
        h = tap(f'stage{stage}/input{number}', layer(h, train))
        h = self.nonlinearity(h)
      h = nnx.max_pool(h, (2, 2), (2, 2))
    h = h.mean((1, 2), dtype=jnp.float32)
    if self.hidden:
      h = self.norm(self.dense(h), use_running_average=not train)
      h = self.nonlinearity(tap('hidden/input', h))
    return self.output(h)
