"""The residual network: a stem, stages of blocks, and a dense layer."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research.models import interface, rematerialization
from bn_research.models.convolution import ConvNorm, logits
from bn_research.models.interface import NormFactory, Tap
from bn_research.models.residual_blocks import (
  Block,
  Layer,
  PreactivationBlock,
)

Layers = Callable[[int, int], tuple[Layer, ...]]


class ResidualNetwork(nnx.Module):
  """A residual network, with a norm at each published place.

    stem:   h <- ReLU(Norm(K * x)), possibly with a maximum over 3 x 3 pixels
    blocks: h <- ReLU(shortcut(h) + F(h)), or h <- shortcut(h) + F(h)
    head:   the mean over positions, and a dense layer

  The first block of each stage after the first halves the image. Blocks with
  preactivation are followed by a norm and a ReLU. Convolutions have no bias:
  the norms add the biases, also the norm `none`.

  A `tap` gets the name `'stem/input'`, and in each block
  `'stage1_block1/input1'`, `'stage1_block1/input2'` and so on, in the order of
  use. With preactivation, `'final/input'` is the last, and the first block has
  no `input1`.

  Source: He et al. (2016a, 2016b).
  """

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    norm: NormFactory,
    rngs: nnx.Rngs,
    width: int,
    stages: Sequence[tuple[int, int]],
    layers: Layers,
    projects: bool,
    large_stem: bool = False,
    preactivation: bool = False,
    zero_init: bool = False,
    dropout: float = 0.0,
    dtype: str = 'float32',
    remat: bool = False,
  ):
    """Initializes the weights.

    Args:
      input_shape: The shape of an example, (height, width, channels).
      num_classes: Number of logits.
      norm: The factory of norms. The places are `'stem'`, and for each block
        `'stage1_block1_norm1'` to `'stage1_block1_norm2'` or `..._norm3'`.
        Without preactivation, a projection has the place
        `'stage1_block1_shortcut'`. With preactivation, the last norm has the
        place `'final'`, and the first block has no `norm1`, because the norm of
        the stem takes the place.
      rngs: Keys for the initializers and for dropout.
      width: Number of channels of the stem.
      stages: For each stage, the number of blocks, and the number of features.
      layers: A function from features and strides to the layers of a block.
      projects: Whether shortcuts between different shapes are convolutions.
      large_stem: Whether the stem is a 7 x 7 convolution that halves the image,
        and a maximum that halves the image again. Otherwise the stem is a 3 x 3
        convolution.
      preactivation: Whether norm and nonlinearity are before convolutions.
      zero_init: Whether the scale of the last norm of each block is zero at
        first.
      dropout: The part of the inputs of the last convolution of a block to set
        to zero, for blocks with preactivation.
      dtype: Type of the computation, 'float32' or 'bfloat16'.
      remat: Whether the backward pass computes the activations of the blocks a
        second time, in place of keeping the activations.

    Raises:
      ValueError: If `dtype` is unknown, or for `zero_init` with preactivation.
    """
    if zero_init and preactivation:
      raise ValueError(
        'zero_init=True needs preactivation=False: a block with preactivation'
        ' does not end with a norm'
      )
    self.remat = remat
    self.large_stem = large_stem
    compute = interface.compute_type(dtype)
    self.stem = ConvNorm(
      *(norm, 'stem', input_shape[-1], width, 7 if large_stem else 3),
      strides=2 if large_stem else 1,
      dtype=compute,
      rngs=rngs,
    )
    given: dict[str, Any] = {
      'projects': projects,
      'dtype': compute,
      'rngs': rngs,
    }
    plan = list(_plan(width, stages, layers))
    width = plan[-1][-1][-1].features
    self.blocks: nnx.List[Block | PreactivationBlock]
    self.final: Any = None
    if preactivation:
      self.blocks = nnx.List(
        PreactivationBlock(
          norm, *row, is_first=k == 0, dropout=dropout, **given
        )
        for k, row in enumerate(plan)
      )
      self.final = nnx.data(norm('final', width, dtype=compute, rngs=rngs))
    else:
      self.blocks = nnx.List(
        Block(norm, *row, zero_init=zero_init, **given) for row in plan
      )
    self.output = logits(width, num_classes, rngs)

  def __call__(
    self, x: jax.Array, *, train: bool, tap: Tap = interface.untapped
  ) -> jax.Array:
    """Computes the logits; see `interface.Network`."""
    h = jax.nn.relu(tap('stem/input', self.stem(x, train)))
    if self.large_stem:
      h = nnx.max_pool(h, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    h = rematerialization.in_turn(
      self.blocks, h, train=train, tap=tap, remat=self.remat
    )
    if self.final is not None:
      h = self.final(h, use_running_average=not train)
      h = jax.nn.relu(tap('final/input', h))
    return self.output(h.mean((1, 2), dtype=jnp.float32))


def _plan(
  width: int, stages: Sequence[tuple[int, int]], layers: Layers
) -> Iterator[tuple[str, int, tuple[Layer, ...]]]:
  """Yields the name, the number of input channels and the layers of blocks."""
  for stage, (num_blocks, features) in enumerate(stages, 1):
    for number in range(1, num_blocks + 1):
      halves = stage > 1 and number == 1
      found = layers(features, 2 if halves else 1)
      yield f'stage{stage}_block{number}', width, found
      width = found[-1].features
