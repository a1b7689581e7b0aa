"""A convolutional network whose first layer sees small patches of the image."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import ranges
from bn_research.models import interface, nonlinearities, stems
from bn_research.models.convolution import convolution
from bn_research.models.interface import NormFactory, Tap

_STEM = stems.learned()


class PatchCNN(nnx.Module):
  """The network of Jordan (2024): a stem on patches, and groups of two layers.

    stem:    h <- g(Norm(stem(x)))
    group:   h <- g(Norm(maxpool(K₁ * h))),    h <- g(Norm(K₂ * h))

  The stem has patches of 2 x 2 pixels and 2 · 4 · channels outputs: 24 for
  colour images. The convolutions of a group are 3 x 3, and the maximum over 2 x
  2 positions halves the image. The maximum over all positions and a dense layer
  without bias, times 1/9, give the logits. The norms learn a bias and no scale.
  The published network has the norm `none`, only a bias, after the whitened
  stem.
  For 32 x 32 colour images of 10 classes the network has 1,971,640 parameters,
  with the kernel of the stem.

  The initial weights are those of `convolution.HE` and of Flax: ours, as the
  network before the identity initialization of the paper.

  A `tap` gets the names `'stem/input'`, `'group1/inner'`, `'group1/outer'` and
  so on.

  Source: Jordan (2024), Sections 3.1 and 3.2.
  """

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    norm: NormFactory,
    stem: stems.StemFactory = _STEM,
    rngs: nnx.Rngs,
    widths: Sequence[int] = (64, 256, 256),
    nonlinearity: str = 'gelu',
    dtype: str = 'float32',
  ):
    """Initializes the weights.

    Args:
      input_shape: The shape of an example, (height, width, channels).
      num_classes: Number of logits.
      norm: The factory of norms. The places are `'stem'`,
        `'group1_norm1'`, `'group1_norm2'` and so on.
      stem: The factory of the first layer, see `stems.StemFactory`.
      rngs: Keys for the initializers.
      widths: Number of channels of each group.
      nonlinearity: Name of g, for example 'relu', or `module:attribute`.
      dtype: Type of the computation, 'float32' or 'bfloat16'. Parameters and
        statistics are float32.

    Raises:
      UserError: If the nonlinearity is unknown.
      ValueError: If a value is wrong, or if the network does not fit the images
        or the classes.
    """
    for width in widths:
      ranges.whole(1, 2**16, widths=width)
    compute = interface.compute_type(dtype)
    interface.check_images('patch_cnn', input_shape, num_classes, least=2)
    self.stem: Any = stem(input_shape[-1], dtype=compute, rngs=rngs)
    first = jax.eval_shape(
      self.stem, jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    )
    if min(first.shape[1:3]) < 2 ** len(widths):
      raise ValueError(
        f'patch_cnn with {len(widths)} widths halves the image so often, and'
        f' {first.shape[1]} x {first.shape[2]} positions remain of'
        f' {input_shape[0]} x {input_shape[1]} pixels after the first layer;'
        ' give fewer widths, or larger images'
      )
    channels = (self.stem.out_features, *widths)
    self.norm = norm(
      'stem', channels[0], use_scale=False, dtype=compute, rngs=rngs
    )
    self.groups = nnx.List(
      Group(norm, f'group{k}', channels[k - 1], width, compute, rngs)
      for k, width in enumerate(widths, 1)
    )
    self.output = nnx.Linear(
      channels[-1], num_classes, use_bias=False, dtype=jnp.float32, rngs=rngs
    )
    self.nonlinearity = nonlinearities.find(nonlinearity)

  def __call__(
    self, x: jax.Array, *, train: bool, tap: Tap = interface.untapped
  ) -> jax.Array:
    """Computes the logits; see `interface.Network`."""
    h = self.norm(self.stem(x), use_running_average=not train)
    h = self.nonlinearity(tap('stem/input', h))
    for group in self.groups:
      h = group(h, train, tap, self.nonlinearity)
    return self.output(h.max((1, 2))) / 9


class Group(nnx.Module):
  """Two convolutions with norms, the first of which halves the image."""

  def __init__(
    self,
    norm: NormFactory,
    place: str,
    num_inputs: int,
    features: int,
    dtype: Any,
    rngs: nnx.Rngs,
  ):
    """Initializes the weights; see `PatchCNN`."""
    self.place = place
    self.convs = nnx.List(
      convolution(n, features, dtype=dtype, rngs=rngs)
      for n in (num_inputs, features)
    )
    self.norms = nnx.List(
      norm(
        f'{place}_norm{k}', features, use_scale=False, dtype=dtype, rngs=rngs
      )
      for k in (1, 2)
    )

  def __call__(
    self,
    h: jax.Array,
    train: bool,
    tap: Tap,
    nonlinearity: nonlinearities.Nonlinearity,
  ) -> jax.Array:
    """Returns the result, (batch, height / 2, width / 2, features)."""
    h = _halved(self.convs[0](h))
    h = self.norms[0](h, use_running_average=not train)
    h = nonlinearity(tap(f'{self.place}/inner', h))
    h = self.norms[1](self.convs[1](h), use_running_average=not train)
    return nonlinearity(tap(f'{self.place}/outer', h))


def _halved(h: jax.Array) -> jax.Array:
  """Returns the maximum over 2 x 2 positions, without a last odd row.

  The derivative of `nnx.max_pool` takes 6 times as long on a CPU.
  """
  height, width = (size // 2 * 2 for size in h.shape[1:3])
  h = h[:, :height, :width]
  h = jnp.maximum(h[:, ::2], h[:, 1::2])
  return jnp.maximum(h[:, :, ::2], h[:, :, 1::2])
