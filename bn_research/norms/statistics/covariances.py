"""Covariances of blocks of channels, and the product with a matrix a block.

What `moments` and `standardize` do with variances, feature by feature, is done
here with covariances: two derivative rules, of any order and in both modes.
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
  """Estimates mean and covariances over `axes` of `x` and over devices.

  Three passes over `x` on each device (sum, what its rounding left over, and
  products), then one gather and an exact merge. The derivative is

    dmean = Σ dx / n,    dcomoment = P + Pᵀ,    P = Σ (x - mean) dxᵀ,

  the sums travelling together; autodiff would take two products of the size of
  the batch for P and Pᵀ, and sum over the batch once more for the mean.

  Args:
    x: (..., channels), floating.
    mask: None, or boolean, broadcastable against `x`, its last axis of size 1.
    axes: Axes that are pooled, not the last; they stay, with size 1.
    size: Channels of a block; zeros fill the last block.
    devices: Devices over which is pooled too.

  Returns:
    Moments with co-moment (..., blocks, size, size), float32 at least.
  """
  count = count_kept(x, mask, axes)
  x = apply_mask(mask, wide(x))
  # Shares of the mean are added up: a sum may overflow where a mean does not.
  share = 1 / jnp.maximum(count, 1)
  mean = (x * share).sum(axes, keepdims=True)
  # Twice, so that what is constant deviates by nothing at all: a relative ε
  # would make its rounding white.
  mean += (apply_mask(mask, x - mean) * share).sum(axes, keepdims=True)
  blocks = _blocks_first(apply_mask(mask, x - mean), size)
  return pooled(Moments(count, mean, _products(blocks, blocks, axes)), devices)


@estimate.defjvp
def _estimate_jvp(axes, size, devices, primals, tangents):
  x, mask = primals
  moments = tag_statistics(estimate(x, mask, axes, size, devices))

  def sums(x, mask, mean, dx):
    dx = apply_mask(mask, wide(dx))
    apart = apply_mask(mask, wide(x) - mean)
    left, right = (_blocks_first(z, size) for z in (apart, dx))
    return dx.sum(axes, keepdims=True), _products(left, right, axes)

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
  """y = W (x - mean) · scale + bias, in blocks; zero where masked out.

  The backward pass keeps `x`, in its own type, and what is of the size of W.

  Args:
    x: (..., channels), floating.
    mask: None, or boolean, broadcastable against `x`.
    mean: Broadcastable against `x`.
    root: W, (..., blocks, d, d), with axes of size 1 where it is shared.
    scale: None, or broadcastable against `x`.
    bias: None, or broadcastable against `x`.
    dtype: Type of the result.

  Returns:
    An array of the shape of `x`; computed in float32 at least.
  """
  apart = apply_mask(mask, wide(x) - mean)
  y = _affine(_times((root, apart)), scale, bias)
  return apply_mask(mask, y).astype(dtype)


@whiten.defjvp
def _whiten_jvp(dtype, primals, tangents):
  x, mask, mean, root, scale, _ = primals
  dx, _, dmean, droot, dscale, dbias = tangents

  def rule(x, mask, dx, mean, root, scale, dmean, droot, dscale, dbias):
    apart = apply_mask(mask, wide(x) - mean)
    dy = _times((root, wide(dx)), (droot, apart)) - _times((root, dmean))
    dy = _affine(dy, scale, dbias)
    if dscale is not None:
      dy = dy + _times((root, apart)) * dscale
    return apply_mask(mask, dy).astype(dtype)

  terms = (mean, root, scale, dmean, droot, dscale, dbias)
  return whiten(*primals, dtype), rematerialized(rule)(x, mask, dx, *terms)


def _affine(y, scale, bias) -> jax.Array:
  y = y if scale is None else y * scale
  return y if bias is None else y + bias


# Letters for the axes of activations; g, i and j are those of blocks.
_LETTERS = ''.join(c for c in string.ascii_letters if c not in 'gij')


def _blocks_first(x: jax.Array, size: int) -> jax.Array:
  """(..., channels) to (blocks, ..., size): products of contiguous matrices."""
  return jnp.moveaxis(in_blocks(x, size), -2, 0)


def _products(left: jax.Array, right: jax.Array, axes: Axes) -> jax.Array:
  """Σ l rᵀ over `axes` of (blocks, ..., size); those axes stay, with size 1."""
  every = _LETTERS[: left.ndim - 2]
  kept = ''.join(a for i, a in enumerate(every) if i not in axes)
  spec = meshes.explicit_spec(left)[1:-1]
  rows = [cut for axis, cut in enumerate(spec) if axis not in axes]
  products = jnp.einsum(
    f'g{every}i,g{every}j->{kept}gij',
    left,
    right,
    precision=lax.Precision.HIGHEST,
    # Which JAX asks for where a sum is over devices.
    out_sharding=meshes.cut(left, *rows, None, None, None) if spec else None,
  )
  return jnp.expand_dims(products, axes)


def _times(*pairs: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Σ M x of pairs of M (..., blocks, d, d) and x (..., channels)."""
  total = sum(
    _product(matrix, _blocks_first(x, matrix.shape[-1])) for matrix, x in pairs
  )
  joined = jnp.moveaxis(total, 0, -2)
  channels = pairs[0][1].shape[-1]
  return joined.reshape((*joined.shape[:-2], -1))[..., :channels]


def _product(matrix: jax.Array, blocks: jax.Array) -> jax.Array:
  every = _LETTERS[: blocks.ndim - 2]
  shared = tuple(i for i in range(len(every)) if matrix.shape[i] == 1)
  left = ''.join(a for i, a in enumerate(every) if i not in shared)
  matrix = jnp.squeeze(matrix, shared)
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
