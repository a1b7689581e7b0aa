"""The whitening map: centre, and multiply by the root of a covariance."""

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bn_research.norms import checks, matrices, roots
from bn_research.norms.collectives import Devices
from bn_research.norms.gradients import Pair
from bn_research.norms.moments import (
  Axes,
  Moments,
  Shape,
  count_kept,
  in_blocks,
  keep,
  pooled,
  recomputed,
  wide,
)

Method = Literal['newton_schulz', 'zca', 'cholesky', 'pca']


@dataclasses.dataclass(frozen=True)
class Whiten:
  """y = W (x - mean) with W S' Wᵀ = I, in blocks of channels.

    S' = (1 - a) S + a μ I + ε c I,    μ = tr S / d

  S is the covariance, a the shrinkage; c is μ if ε is relative, else 1. The
  blocks are of neighbouring channels; the last holds what remains.

  A block of zero variance is mapped to zero. Non-finite activations give
  non-finite results. Any finite ones give finite results with finite gradients:
  where fewer examples than channels leave S singular and nothing is added to
  it, the directions that rounding alone decides are damped.

  Attributes:
    method: Which W (see `roots`): 'newton_schulz' and 'zca' change the
      activations least; 'cholesky' depends on the order of channels; 'pca'
      turns axes, and swaps them at ties.
    group_size: Channels of a block; None for one block of all.
    epsilon: ε, added to the diagonal.
    relative: Whether ε counts in units of the mean variance, which makes the
      map equivariant to scale; the papers' is absolute.
    shrinkage: a in [0, 1], or 'oas' for the value that an oracle would come
      near to (Chen et al., 2010), estimated from S and the count.
    options: Options of the method, as sorted pairs (see `roots`).
    remembered: What the population remembers: covariances, from which W is made
      at inference, or the W of batches, as in the papers.

  Source: Huang et al. (2018), equations 4 and 5; Huang et al. (2019).
  """

  method: Method = 'newton_schulz'
  group_size: int | None = None
  epsilon: float = 1e-5
  relative: bool = True
  shrinkage: float | Literal['oas'] = 0.0
  options: tuple[tuple[str, Any], ...] = ()
  remembered: Literal['covariance', 'matrix'] = 'covariance'

  centre = True
  scales = True
  joint = True

  def __post_init__(self):
    if self.method not in roots.METHODS:
      raise ValueError(
        f'method={self.method!r} is not a whitening; use one of '
        f'{", ".join(roots.METHODS)}.'
      )
    if self.group_size is not None and self.group_size < 1:
      raise ValueError(
        f'group_size={self.group_size} must be at least 1 channel, or None for '
        'one block of all.'
      )
    checks.non_negative(epsilon=self.epsilon)
    if self.shrinkage != 'oas' and not 0 <= self.shrinkage <= 1:
      raise ValueError(
        f"shrinkage={self.shrinkage!r} must be in [0, 1], or 'oas'."
      )

  def estimate(
    self, x: jax.Array, mask: jax.Array | None, axes: Axes, devices: Devices
  ) -> Moments:
    """Estimates mean and covariances of blocks of the last axis."""
    if x.ndim - 1 in axes:
      raise ValueError(
        'whitening needs the covariance of features, and this scope pools '
        'them; take a scope that keeps the last axis, such as Batch().'
      )
    if mask is not None and mask.shape[-1] != 1:
      raise ValueError(
        f'mask of shape {mask.shape} tells features apart; a covariance needs '
        'whole examples: give the last axis of the mask size 1.'
      )
    size = self._block(x.shape[-1])

    def local(x):
      count = count_kept(x, mask, axes)
      x = keep(mask, wide(x))
      mean = x.sum(axes, keepdims=True) / jnp.maximum(count, 1)
      products = _products(in_blocks(keep(mask, x - mean), size), axes)
      return Moments(count, mean, products)

    return pooled(recomputed(local)(x), devices)

  def initial(self, features: Shape) -> tuple[jax.Array, jax.Array]:
    """Returns mean 0, and covariance I for each block."""
    size = self._block(features[-1])
    eye = jnp.eye(size)
    return jnp.zeros(features), jnp.stack([eye] * -(-features[-1] // size))

  def pair(self, moments: Moments) -> Pair:
    """Returns the mean, and W of each block."""
    channels = moments.mean.shape[-1]
    count = moments.count[..., :1, None, None]
    return Pair(moments.mean, self.root(moments.variance, channels, count))

  def recall(self, mean: jax.Array, var: jax.Array) -> Pair:
    """Returns the same of what a population remembers."""
    if self.remembered == 'matrix':
      return Pair(mean, var)
    return Pair(mean, self.root(var, mean.shape[-1]))

  def root(
    self, covariance: jax.Array, channels: int, count: Any = jnp.inf
  ) -> jax.Array:
    """Returns W of the covariance of each block.

    Args:
      covariance: S, (..., blocks, d, d), zero beyond the last channel.
      channels: How many there are in all.
      count: Of activations, for 'oas'.

    Returns:
      W, (..., blocks, d, d); beyond the last channel the identity.
    """
    blocks, size = covariance.shape[-3], covariance.shape[-1]
    real = np.arange(blocks * size).reshape(blocks, size) < channels
    sizes = real.sum(-1)[:, None, None].astype(covariance.dtype)
    level = matrices.trace(covariance) / sizes
    usable = jnp.isfinite(level) & (level > 0)
    # The W of S is the W of S / c, over √c, for any constant c: so no power of
    # an extreme scale overflows, in the derivative neither.
    unit = lax.stop_gradient(jnp.where(usable, level, 1))
    eye = jnp.eye(size, dtype=covariance.dtype)
    scaled = jnp.where(usable, covariance / unit, eye)
    level = jnp.where(usable, level / unit, 1)
    scaled = self._regularized(scaled, level, unit, count, real)
    root = roots.inverse_sqrt(scaled, self.method, **dict(self.options))
    root = jnp.where(real[..., None], root / jnp.sqrt(unit), eye)
    return jnp.where(usable, root, 0)

  def finish(self, x, mask, pair, scale, bias) -> jax.Array:
    """Centres, whitens, scales and shifts."""
    size = self._block(x.shape[-1])

    def whitened(x, mean, root, scale, bias):
      apart = keep(mask, wide(x) - mean)
      y = _times(root, in_blocks(apart, size))
      y = y.reshape((*y.shape[:-2], -1))[..., : x.shape[-1]]
      y = y if scale is None else y * scale
      y = y if bias is None else y + bias
      return keep(mask, y).astype(x.dtype)

    return recomputed(whitened)(x, pair.mean, pair.spread, scale, bias)

  def _block(self, channels: int) -> int:
    size = self.group_size or channels
    if size > channels:
      raise ValueError(
        f'group_size={size} is more than the {channels} channels; choose at '
        'most that, or None for one block of all.'
      )
    return size

  def _regularized(self, covariance, level, unit, count, real) -> jax.Array:
    """S' of the unit scale; positive definite beyond the last channel too."""
    shrinkage: Any = self.shrinkage
    if shrinkage == 'oas':
      sizes = real.sum(-1)[:, None, None]
      shrinkage = _oas(covariance, level, sizes, count)
    epsilon = self.epsilon * (level if self.relative else 1 / unit)
    # Principal axes come by size; what is beyond the last channel goes last.
    beyond = 0.0 if self.method == 'pca' else 1.0
    diagonal = jnp.where(real[..., None], shrinkage * level + epsilon, beyond)
    eye = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
    regular = (1 - shrinkage) * covariance + diagonal * eye
    if self.method != 'cholesky':
      return regular
    # Cholesky alone gives NaN for what is singular to rounding.
    failed = jnp.isnan(roots.cholesky(lax.stop_gradient(regular)))
    failed = failed.any((-2, -1), keepdims=True) & jnp.isfinite(regular)
    least = eye.shape[0] ** 2 * jnp.finfo(eye.dtype).eps
    return jnp.where(failed, regular + least * eye, regular)


def _oas(covariance, level, sizes, count) -> jax.Array:
  """The oracle approximating shrinkage.

  Source: Chen et al. (2010), equation 23.
  """
  squares = jnp.sum(covariance**2, (-2, -1), keepdims=True) / sizes**2
  spread = squares - level**2 / sizes
  # A block of one channel has nothing to shrink.
  spread = jnp.where(sizes > 1, spread, 1)
  shrinkage = (squares + level**2) / ((count + 1) * spread)
  return jnp.clip(jnp.where(sizes > 1, shrinkage, 0), 0, 1)


_LETTERS = 'abcdefh'  # axes of the activations; g, i, j are for blocks


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _products(blocks: jax.Array, axes: Axes) -> jax.Array:
  """Σ z zᵀ over `axes` of z (..., blocks, d); those axes stay, with size 1."""
  return _inner(blocks, blocks, axes)


@_products.defjvp
def _products_jvp(axes, primals, tangents):
  # Autodiff would take two products of the size of the batch; the second is the
  # transpose of the first.
  half = _inner(tangents[0], primals[0], axes)
  return _products(primals[0], axes), half + matrices.transpose(half)


def _inner(left: jax.Array, right: jax.Array, axes: Axes) -> jax.Array:
  every = _LETTERS[: left.ndim - 2]
  kept = ''.join(a for i, a in enumerate(every) if i not in axes)
  # With the blocks in front, each product is of contiguous matrices.
  left, right = (jnp.moveaxis(side, -2, 0) for side in (left, right))
  products = jnp.einsum(
    f'g{every}i,g{every}j->{kept}gij',
    left,
    right,
    precision=lax.Precision.HIGHEST,
  )
  return jnp.expand_dims(products, axes)


def _times(root: jax.Array, blocks: jax.Array) -> jax.Array:
  """W z for z (..., blocks, d) and W (..., blocks, d, d), size 1 if shared."""
  every = _LETTERS[: blocks.ndim - 2]
  shared = tuple(i for i in range(len(every)) if root.shape[i] == 1)
  left = ''.join(a for i, a in enumerate(every) if i not in shared)
  z = jnp.moveaxis(blocks, -2, 0)
  y = jnp.einsum(
    f'g{every}i,{left}gji->g{every}j',
    z,
    jnp.squeeze(root, shared),
    precision=lax.Precision.HIGHEST,
  )
  return jnp.moveaxis(y, 0, -2)
