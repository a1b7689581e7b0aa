"""Covariances of blocks of channels, and products with a matrix per block.

This module does with covariances what `moments` and `standardize` do with
variances. Each of the two functions has one derivative rule, of any order and
in both modes.
"""

import string
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.roots import matrices
from bn_research.norms.roots.tags import tag_statistics
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.collectives import Devices
from bn_research.norms.statistics.memory import rematerialized
from bn_research.norms.statistics.moments import (
  Axes,
  Moments,
  apply_mask,
  count_kept,
  in_blocks,
  pooled,
  wide,
)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def estimate(
  x: jax.Array, mask: jax.Array | None, axes: Axes, size: int, devices: Devices
) -> Moments:
  """Estimates the mean and covariances over `axes` of `x` and over devices.

  Each device makes three passes over `x`: a sum, a correction of the rounding
  of the sum, and the products. One gather and an exact merge follow. The
  derivative is

    dmean = Σ dx / n,    dcomoment = P + Pᵀ,    P = Σ (x - mean) dxᵀ.

  One collective moves both sums. Automatic differentiation would take two
  products of the size of the batch for P and Pᵀ, and would sum over the batch
  once more for the mean.

  Args:
    x: Activations (..., channels), floating.
    mask: None, or boolean and broadcastable against `x`, with a last axis of
      size 1. False hides an activation.
    axes: Axes to pool, without the last; the pooled axes stay, with size 1.
    size: Number of channels of a block; zeros fill the last block.
    devices: Devices to pool over.

  Returns:
    Moments with mean (..., channels) and co-moment (..., blocks, size, size),
    in float32 or a wider type.
  """
  count = count_kept(x, mask, axes)
  x = apply_mask(mask, wide(x))
  # The sum adds shares of the mean, because a sum of large activations may
  # overflow even if the mean does not.
  share = 1 / jnp.maximum(count, 1)
  mean = (x * share).sum(axes, keepdims=True)
  # Refine the mean once more, so that a constant channel deviates by exactly
  # zero. Whitening with a relative ε would amplify a rounding error to unit
  # variance.
  mean += (apply_mask(mask, x - mean) * share).sum(axes, keepdims=True)
  blocks = _blocks_first(apply_mask(mask, x - mean), size)
  return pooled(Moments(count, mean, _products(blocks, blocks, axes)), devices)


@estimate.defjvp
def _estimate_jvp(axes, size, devices, primals, tangents):
  x, mask = primals
  moments = tag_statistics(estimate(x, mask, axes, size, devices))

  # The term with dmean is absent: Σ (x - mean) = 0 makes the term vanish.
  def sums(x, mask, mean, dx):
    dx = apply_mask(mask, wide(dx))
    deviation = apply_mask(mask, wide(x) - mean)
    left, right = (_blocks_first(z, size) for z in (deviation, dx))
    return dx.sum(axes, keepdims=True), _products(left, right, axes)

  # Without rematerialization the backward pass would keep the deviation, an
  # array as large as `x` and often twice as wide.
  local = rematerialized(sums)(x, mask, moments.mean, tangents[0])
  dsum, half = devices.total(*local)
  dmean = dsum / jnp.maximum(moments.count, 1)
  dcomoment = half + matrices.transpose(half)
  return moments, Moments(jnp.zeros_like(moments.count), dmean, dcomoment)


@partial(jax.custom_jvp, nondiff_argnums=(6,))
def whiten(
  x: jax.Array,
  mask: jax.Array | None,
  mean: jax.Array,
  root: jax.Array,
  scale: jax.Array | None,
  bias: jax.Array | None,
  dtype: Any,
) -> jax.Array:
  """Whitens blocks of channels with given moments, and applies the affine.

    y = W (x - mean) · scale + bias        (zero for masked activations)

  The backward pass keeps `x`, in the type of `x`, and arrays of the size of W.

  Args:
    x: Activations (..., channels), floating.
    mask: None, or boolean and broadcastable against `x`.
    mean: Broadcastable against `x`.
    root: W, (..., blocks, d, d), with size 1 on each axis that shares one W.
    scale: None for 1, or broadcastable against `x`.
    bias: None for 0, or broadcastable against `x`.
    dtype: Type of the result.

  Returns:
    An array of the shape of `x`, computed in float32 or a wider type.
  """
  deviation = apply_mask(mask, wide(x) - mean)
  y = _affine(_times((root, deviation)), scale, bias)
  return apply_mask(mask, y).astype(dtype)


@whiten.defjvp
def _whiten_jvp(dtype, primals, tangents):
  x, mask, mean, root, scale, _ = primals
  dx, _, dmean, droot, dscale, dbias = tangents

  def rule(x, mask, dx, mean, root, scale, dmean, droot, dscale, dbias):
    deviation = apply_mask(mask, wide(x) - mean)
    # A separate product W dmean is small. The difference dx - dmean would be
    # one more array of the size of `x`.
    dy = _times((root, wide(dx)), (droot, deviation)) - _times((root, dmean))
    dy = _affine(dy, scale, dbias)
    if dscale is not None:
      dy = dy + _times((root, deviation)) * dscale
    return apply_mask(mask, dy).astype(dtype)

  terms = (mean, root, scale, dmean, droot, dscale, dbias)
  return whiten(*primals, dtype), rematerialized(rule)(x, mask, dx, *terms)


def _affine(y, scale, bias) -> jax.Array:
  y = y if scale is None else y * scale
  return y if bias is None else y + bias


# Letters of `einsum` for the axes of activations. The axes of blocks (g) and of
# the matrix in a block (i, j) have reserved letters.
_LETTERS = ''.join(c for c in string.ascii_letters if c not in 'gij')


def _blocks_first(x: jax.Array, size: int) -> jax.Array:
  """Reshapes (..., channels) to (blocks, ..., size)."""
  # Leading blocks make the matrices of each product contiguous.
  return jnp.moveaxis(in_blocks(x, size), -2, 0)


def _products(left: jax.Array, right: jax.Array, axes: Axes) -> jax.Array:
  """Returns Σ l rᵀ over `axes` of (blocks, ..., size), kept with size 1."""
  every = _LETTERS[: left.ndim - 2]
  kept = ''.join(a for i, a in enumerate(every) if i not in axes)
  spec = meshes.explicit_spec(left)[1:-1]
  rows = [cut for axis, cut in enumerate(spec) if axis not in axes]
  products = jnp.einsum(
    f'g{every}i,g{every}j->{kept}gij',
    left,
    right,
    precision=lax.Precision.HIGHEST,
    # JAX requires a sharding if the sum runs over devices of Explicit axes.
    out_sharding=meshes.cut(left, *rows, None, None, None) if spec else None,
  )
  return jnp.expand_dims(products, axes)


def _times(*pairs: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Returns Σ M x over pairs of M (..., blocks, d, d) and x (..., channels)."""
  # The sum in blocked layout moves the axes back once for all pairs.
  total = sum(
    _product(matrix, _blocks_first(x, matrix.shape[-1])) for matrix, x in pairs
  )
  joined = jnp.moveaxis(total, 0, -2)
  channels = pairs[0][1].shape[-1]
  return joined.reshape((*joined.shape[:-2], -1))[..., :channels]


def _product(matrix: jax.Array, blocks: jax.Array) -> jax.Array:
  # A matrix that all rows share has axes of size 1. Without these axes, the
  # rows join into one large product instead of one small product per row.
  every = _LETTERS[: blocks.ndim - 2]
  shared = tuple(i for i in range(len(every)) if matrix.shape[i] == 1)
  left = ''.join(a for i, a in enumerate(every) if i not in shared)
  matrix = jnp.squeeze(matrix, shared)
  # With Explicit axes, `einsum` requires equal cuts of a shared letter.
  if spec := meshes.explicit_spec(blocks)[1:-1]:
    rows = [cut for i, cut in enumerate(spec) if i not in shared]
    sharding = meshes.cut(blocks, *rows, None, None, None)
    matrix = jax.sharding.reshard(matrix, sharding)
  return jnp.einsum(
    f'g{every}i,{left}gji->g{every}j',
    blocks,
    matrix,
    precision=lax.Precision.HIGHEST,
  )
