"""The whitening map: centre, and multiply by the root of a covariance."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bn_research.norms import checks, roots
from bn_research.norms.axes import Map, Pair
from bn_research.norms.pytrees import Schedule, is_array
from bn_research.norms.roots import eigen, matrices
from bn_research.norms.statistics import covariances, meshes
from bn_research.norms.statistics.moments import Moments, Shape
from bn_research.norms.statistics.views import as_tuples

Method = Literal['newton_schulz', 'zca', 'cholesky', 'pca']


@dataclasses.dataclass(frozen=True)
class Whiten(Map):
  """y = W (x - mean) with W S' Wᵀ = I, in blocks of channels.

    S' = (1 - a) S + a μ I + ε c I,    μ = tr S / d

  S is the covariance, a the shrinkage; c is μ if ε is relative, else 1. Of S'
  no eigenvalue is less than floor · μ; larger ones stay as they are. The blocks
  are of neighbouring channels; the last holds what remains.

  A block of zero variance is mapped to zero. Where the scale of S' is near the
  ends of float32, for deviations below 7e-10 (if ε is relative, or 0) or above
  6e15, the block is mapped to zero with gradient zero.
  Non-finite activations give non-finite results; finite ones, up to half of the
  largest number, finite results with finite gradients: where fewer examples
  than channels leave S singular (see `undetermined`) and nothing is added to
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
      near to (Chen et al., 2010), estimated from S and the count. A population
      counts as infinitely many, so that at inference it is 0.
    floor: In [0, 1). Not 0, it costs an eigendecomposition, with
      'newton_schulz' too, which has none else.
    options: Options of the method, as sorted pairs (see `roots`).
    average: What a population averages: covariances, from which W is made
      at inference, or the W of batches, as in the papers.

  Source: Huang et al. (2018), equations 4 and 5; Huang et al. (2019).
  """

  numbers: ClassVar[tuple[str, ...]] = ('epsilon', 'shrinkage', 'floor')
  centre: ClassVar[bool] = True  # type: ignore[misc]  # no choice here
  joint: ClassVar[bool] = True
  ordinary: ClassVar[bool] = True
  merges: ClassVar[bool] = True

  method: Method = 'newton_schulz'
  group_size: int | None = None
  epsilon: Schedule = 1e-5
  relative: bool = True
  shrinkage: Schedule | Literal['oas'] = 0.0
  floor: Schedule = 0.0
  options: tuple[tuple[str, Any], ...] = ()
  average: Literal['covariance', 'matrix'] = 'covariance'

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
    object.__setattr__(self, 'options', as_tuples(self.options))
    checks.number('epsilon', self.epsilon, checks.is_non_negative)
    if self.shrinkage != 'oas':
      checks.number(
        'shrinkage',
        self.shrinkage,
        lambda a: 0 <= a <= 1,
        "in [0, 1], or 'oas'",
      )
    checks.number('floor', self.floor, lambda c: 0 <= c < 1, 'in [0, 1)')

  @property
  def scales(self) -> bool:
    """True: the map takes scales away."""
    return True

  def estimate(self, x, mask, axes, devices, groups=None) -> Moments:
    """Estimates mean and covariances of blocks of the last axis."""
    if x.ndim - 1 in axes or groups is not None:
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
    x = meshes.whole_features(x)
    return covariances.estimate(x, mask, tuple(axes), size, devices)

  def initial(self, features: Shape, dtype: Any) -> Moments:
    """Returns mean 0, and for each block I: a covariance, or the matrix W."""
    size = self._block(features[-1])
    blocks = -(-features[-1] // size)
    identities = jnp.broadcast_to(
      jnp.eye(size, dtype=dtype), (blocks, size, size)
    )
    count = jnp.ones(features, dtype)
    return Moments(count, jnp.zeros(features, dtype), identities)

  def remember(self, moments: Moments) -> Moments:
    """Returns the moments themselves, or with W in place of the covariance."""
    if self.average == 'covariance':
      return moments
    return moments.with_variance(self.pair(moments).spread)

  @property
  def ddof(self) -> int:
    """1; 0 for matrices, because n / (n - 1) is a factor of covariances."""
    return int(self.average == 'covariance')

  def remembering_moments(self) -> 'Whiten':
    """Returns the same whitening, which remembers covariances."""
    return dataclasses.replace(self, average='covariance')

  def pair(self, moments: Moments) -> Pair:
    """Returns the mean, and W of each block."""
    channels = moments.mean.shape[-1]
    count = moments.count[..., :1, None, None]
    return Pair(moments.mean, self.root(moments.variance, channels, count))

  def recall(self, mean: jax.Array, var: jax.Array) -> Pair:
    """Returns the same of what a population remembers."""
    if self.average == 'matrix':
      return Pair(mean, var)
    return Pair(mean, self.root(var, mean.shape[-1]))

  def undetermined(self, moments: Moments) -> jax.Array:
    """Counts the directions of each block that so few examples leave open.

    n examples, centred, span n - 1 directions at most. In the others what is
    added to S decides, or rounding.

    Args:
      moments: Such as `Normalization.measure` returns.

    Returns:
      int32 (..., blocks): 0 where there are more examples than channels.
    """
    sizes = self._real(moments.comoment, moments.mean.shape[-1]).sum(-1)
    spanned = jnp.maximum(moments.count[..., :1] - 1, 0)
    return jnp.maximum(sizes - spanned, 0).astype(jnp.int32)

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
    size = covariance.shape[-1]
    real = self._real(covariance, channels)
    sizes = real.sum(-1)[:, None, None].astype(covariance.dtype)
    level = matrices.trace(covariance) / sizes
    # The W of S is the W of S / c, over √c, for any constant c: so no power of
    # an extreme scale overflows. The derivative with respect to S is at most of
    # size (ε c)^-³⁄², for the ε of the type.
    epsilon = checks.number_of_type(self.epsilon, level)
    unit = level if self.relative else level + epsilon
    limits = jnp.finfo(covariance.dtype)
    least, most = limits.tiny ** (2 / 3) / limits.eps, limits.max * limits.eps
    usable = (least < unit) & (unit < most)
    unit = lax.stop_gradient(jnp.where(usable, unit, 1))
    eye = jnp.eye(size, dtype=covariance.dtype)
    scaled = jnp.where(usable, covariance / unit, eye)
    level = jnp.where(usable, level / unit, 1)
    scaled = self._regularized(scaled, level, unit, count, real)
    root = roots.inverse_sqrt(scaled, self.method, **dict(self.options))
    root = jnp.where(real[..., None], root / jnp.sqrt(unit), eye)
    return jnp.where(usable, root, 0)

  def finish(self, x, mask, pair, scale, bias, dtype) -> jax.Array:
    """Centres, whitens, scales and shifts, in one rule."""
    x, mean, scale, bias = jax.tree.map(
      meshes.whole_features, (x, pair.mean, scale, bias)
    )
    return covariances.whiten(x, mask, mean, pair.spread, scale, bias, dtype)

  def _real(self, covariance: jax.Array, channels: int) -> np.ndarray:
    """Which places of the blocks are of channels, (blocks, d)."""
    blocks, size = covariance.shape[-3], covariance.shape[-1]
    return np.arange(blocks * size).reshape(blocks, size) < channels

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
    shrinkage = checks.number_of_type(shrinkage, level)
    epsilon = checks.number_of_type(self.epsilon, level)
    epsilon = epsilon * (level if self.relative else 1 / unit)
    # Principal axes come by size; what is beyond the last channel goes last.
    # And what an iteration that is truncated starts from depends on the trace.
    truncated = 'num_iterations' in dict(self.options)
    beyond = 0.0 if truncated or self.method == 'pca' else 1.0
    diagonal = jnp.where(real[..., None], shrinkage * level + epsilon, beyond)
    eye = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
    regular = (1 - shrinkage) * covariance + diagonal * eye
    if is_array(self.floor) or self.floor:
      least = checks.number_of_type(self.floor, level) * level
      raised = eigen.floor_spectrum(regular, least)
      # What is beyond the last channel stays as it is.
      both = real[..., :, None] & real[..., None, :]
      regular = jnp.where(both, raised, regular)
    if self.method != 'cholesky':
      return regular
    # Cholesky alone gives NaN, or what is as large, for what is singular to
    # rounding, which has eigenvalues below ε.
    root = roots.cholesky(lax.stop_gradient(regular))
    eps = jnp.finfo(eye.dtype).eps
    failed = ~jnp.all(jnp.abs(root) <= eps**-0.5, (-2, -1), keepdims=True)
    # Of S, whose eigenvalues are at most d here, rounding is that large.
    least = len(eye) * max(len(eye), 16) * eps
    shifted = jnp.where(failed, regular + least * eye, regular)
    return jnp.where(jnp.isfinite(regular), shifted, regular)


def _oas(covariance, level, sizes, count) -> jax.Array:
  """The oracle approximating shrinkage, for p channels and n examples.

    ((1 - 2/p) tr S² + tr² S) / ((n + 1 - 2/p) (tr S² - tr² S / p)),  1 at most

  Source: Chen et al. (2010), equation 23.
  """
  squares = jnp.sum(covariance**2, (-2, -1), keepdims=True) / sizes**2
  spread = squares - level**2 / sizes
  # One channel, or a multiple of I to rounding, is what it is shrunk to.
  apart = spread > jnp.finfo(spread.dtype).eps * squares
  spread = jnp.where(apart, spread, 1)
  ratio = ((1 - 2 / sizes) * squares + level**2) / spread
  shrinkage = ratio / jnp.maximum(count + 1 - 2 / sizes, 1)
  return jnp.where(apart, jnp.clip(shrinkage, 0, 1), 0)
