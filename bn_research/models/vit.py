"""A Vision Transformer with norms before, after or around each sub-layer."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import ranges
from bn_research.models.convolution import logits
from bn_research.models.interface import (
  NormFactory,
  Tap,
  check_images,
  compute_type,
  untapped,
)
from bn_research.models.rematerialization import in_turn

# The norms of a sub-layer: of its input, of its output, and of the sum.
_PLACEMENTS = {'pre': ('in',), 'post': ('sum',), 'peri': ('in', 'out')}

_Linear = Callable[[int, int], nnx.Linear]
_SubLayer = Callable[[jax.Array, bool, Tap], jax.Array]


class ViT(nnx.Module):
  """The Vision Transformer, with a mean over tokens and without a class token.

    tokens:  h <- E patches(x) + position
    pre:     h <- h + M(Norm(h))
    post:    h <- Norm(h + M(h))
    peri:    h <- h + Norm(M(Norm(h)))

  M is attention in the first half of a block, and an MLP in the second half:

    attention:  W softmax(q kᵀ / √d) v,  in each head of d features
    MLP:        W₂ GELU(W₁ h)

  With `qk_norm`, q and k are Norm(q) and Norm(k), over the d features of a
  head. A final norm follows the last block of 'pre' and of 'peri'; each block
  of 'post' ends with a norm. A mean over tokens and a dense layer give the
  logits. The position embedding is learned.

  A `tap` gets the names `'block1/scores'`, (batch, heads, tokens, tokens), for
  the softmax, and `'block1/hidden'`, (batch, tokens, features), for GELU.

  Source: Dosovitskiy et al. (2021), Section 3.1 and Appendix D.3; 'post':
  Vaswani et al. (2017), Section 3.1; 'peri': Kim et al. (2025); `qk_norm`:
  Dehghani et al. (2023), Section 2.
  """

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    norm: NormFactory,
    rngs: nnx.Rngs,
    patch_size: int = 4,
    depth: int = 4,
    width: int = 64,
    num_heads: int = 4,
    mlp_ratio: int = 4,
    placement: str = 'pre',
    qk_norm: bool = False,
    dtype: str = 'float32',
    remat: bool = False,
  ):
    """Initializes the weights.

    Args:
      input_shape: The shape of an example, (height, width, channels).
      num_classes: Number of logits.
      norm: The factory of norms. For each block the places are
        `'block1_attention_in'` and `'block1_mlp_in'` with 'pre' and 'peri',
        `'block1_attention_out'` and `'block1_mlp_out'` with 'peri',
        `'block1_attention_sum'` and `'block1_mlp_sum'` with 'post', and
        `'block1_query'` and `'block1_key'` with `qk_norm`. The last place is
        `'final'`, with 'pre' and 'peri'.
      rngs: Keys for the initializers.
      patch_size: Height and width of a patch, in pixels.
      depth: Number of blocks.
      width: Number of features of a token.
      num_heads: Number of heads of attention.
      mlp_ratio: Width of the hidden layer of an MLP, in units of `width`.
      placement: Where the norms of a sub-layer are: 'pre', 'post' or 'peri'.
      qk_norm: Whether norms normalize the queries and the keys of each head.
      dtype: Type of the computation, 'float32' or 'bfloat16'. Parameters,
        statistics and logits are float32.
      remat: Whether the backward pass computes the activations inside of a
        block again, in place of keeping the activations in memory.

    Raises:
      ValueError: If a size is not a positive whole number, if the patches do
        not tile the image, if the number of heads does not divide the width, or
        if the placement or the type is unknown.
    """
    ranges.whole(1, 2**16, width=width, depth=depth, patch_size=patch_size)
    ranges.whole(1, 2**16, num_heads=num_heads, mlp_ratio=mlp_ratio)
    if width % num_heads:
      raise ValueError(f'num_heads={num_heads} does not divide width={width}')
    check_images('vit', input_shape, num_classes, least=patch_size)
    if placement not in _PLACEMENTS:
      names = ' or '.join(_PLACEMENTS)
      raise ValueError(f'placement={placement!r}; choose {names}')
    around = _PLACEMENTS[placement]
    computed = compute_type(dtype)
    num_tokens, num_values = _patches(input_shape, patch_size)
    norm = functools.partial(norm, dtype=computed, rngs=rngs)
    linear = functools.partial(
      nnx.Linear,
      kernel_init=nnx.initializers.glorot_uniform(),
      dtype=computed,
      rngs=rngs,
    )
    self.patch_size = patch_size
    self.remat = remat
    self.embedding = linear(num_values, width)
    position = nnx.initializers.normal(0.02)
    self.position = nnx.Param(position(rngs.params(), (num_tokens, width)))
    self.blocks = nnx.List(
      Block(
        Residual(
          Attention(norm, linear, place, width, num_heads, qk_norm=qk_norm),
          _norms(norm, f'{place}_attention', width, around),
        ),
        Residual(
          MLP(linear, place, width, mlp_ratio * width),
          _norms(norm, f'{place}_mlp', width, around),
        ),
      )
      for place in (f'block{i}' for i in range(1, depth + 1))
    )
    has_final = 'sum' not in around
    self.final = nnx.data(norm('final', width) if has_final else None)
    self.output = logits(width, num_classes, rngs)

  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    tap: Tap = untapped,
  ) -> jax.Array:
    """Computes the logits; see `interface.Network`."""
    h = self.embedding(_cut(x, self.patch_size))
    h = h + self.position.astype(h.dtype)
    h = in_turn(self.blocks, h, train=train, tap=tap, remat=self.remat)
    return self.output(_applied(self.final, h, train).mean(1))


class Block(nnx.Module):
  """Attention and an MLP, each with a shortcut around."""

  def __init__(self, attention: 'Residual', mlp: 'Residual'):
    """Takes the two halves."""
    self.attention = attention
    self.mlp = mlp

  def __call__(self, x: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Returns the tokens after the block, (batch, tokens, width)."""
    return self.mlp(self.attention(x, train, tap), train, tap)


class Residual(nnx.Module):
  """A sub-layer with a shortcut around, and norms at some of three places."""

  def __init__(self, layer: _SubLayer, norms: dict[str, nnx.Module]):
    """Takes the sub-layer, and the norms by place: 'in', 'out' or 'sum'."""
    self.layer = layer
    self.norms = nnx.Dict(norms)

  def __call__(self, x: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Returns the tokens after the sub-layer, (batch, tokens, width)."""
    norm = lambda at, h: _applied(self.norms.get(at), h, train)
    return norm('sum', x + norm('out', self.layer(norm('in', x), train, tap)))


class Attention(nnx.Module):
  """Attention of each token to all tokens, in several heads."""

  def __init__(
    self,
    norm: NormFactory,
    linear: _Linear,
    place: str,
    width: int,
    num_heads: int,
    *,
    qk_norm: bool,
  ):
    """Initializes the weights; see `ViT`."""
    self.place = place
    self.num_heads = num_heads
    self.query, self.key, self.value, self.output = (
      linear(width, width) for _ in range(4)
    )
    # A bias of a normalized key adds one number to all scores of a query, and
    # the softmax does not change. The source has no bias for queries either.
    make = lambda name: norm(
      f'{place}_{name}', width // num_heads, use_bias=False
    )
    self.query_norm = nnx.data(make('query') if qk_norm else None)
    self.key_norm = nnx.data(make('key') if qk_norm else None)

  def __call__(self, x: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Returns the result of attention, (batch, tokens, width)."""
    q, k, v = (
      layer(x).reshape(*x.shape[:-1], self.num_heads, -1)
      for layer in (self.query, self.key, self.value)
    )
    q = _applied(self.query_norm, q, train)
    k = _applied(self.key_norm, k, train)
    # The attention function of JAX would hide the scores from `tap`.
    scores = jnp.einsum('bqhd,bkhd->bhqk', q / math.sqrt(q.shape[-1]), k)
    scores = tap(f'{self.place}/scores', scores)
    # The sum of the exponentials is exact enough in float32 only.
    wide = jnp.promote_types(scores.dtype, jnp.float32)
    weights = jax.nn.softmax(scores.astype(wide)).astype(v.dtype)
    h = jnp.einsum('bhqk,bkhd->bqhd', weights, v)
    return self.output(h.reshape(x.shape))


class MLP(nnx.Module):
  """Two dense layers with GELU between the layers, for each token."""

  def __init__(self, linear: _Linear, place: str, width: int, hidden: int):
    """Initializes the weights; see `ViT`."""
    self.place = place
    self.first = linear(width, hidden)
    self.second = linear(hidden, width)

  def __call__(self, x: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Returns the result of the MLP, (batch, tokens, width)."""
    del train  # There is no norm inside.
    return self.second(jax.nn.gelu(tap(f'{self.place}/hidden', self.first(x))))


def _norms(
  norm: NormFactory, place: str, width: int, around: Sequence[str]
) -> dict[str, nnx.Module]:
  """Returns the norms of a sub-layer: 'in', 'out' or 'sum'."""
  return {at: norm(f'{place}_{at}', width) for at in around}


def _applied(norm: Any, x: jax.Array, train: bool) -> jax.Array:
  """Returns Norm(x), or x where the network has no norm."""
  return x if norm is None else norm(x, use_running_average=not train)


def _patches(shape: Sequence[int], size: int) -> tuple[int, int]:
  """Returns the number of patches, and the number of values in a patch."""
  height, width, channels = shape
  if height % size or width % size:
    raise ValueError(
      f'patch_size={size} does not divide the image of {height} x {width}'
      ' pixels'
    )
  return (height // size) * (width // size), size * size * channels


def _cut(x: jax.Array, size: int) -> jax.Array:
  """Cuts images into flat patches, (batch, tokens, values of a patch)."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // size, size, width // size, size, channels)
  return x.swapaxes(2, 3).reshape(batch, -1, size * size * channels)
