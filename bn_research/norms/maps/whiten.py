"""The whitening map: centre, and multiply by a root of the covariance."""

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
from bn_research.norms.statistics.moments import Moments, Shape, wide_type
from bn_research.norms.statistics.views import as_tuples

Method = Literal['newton_schulz', 'zca', 'cholesky', 'pca']


@dataclasses.dataclass(frozen=True)
class Whiten(Map):
  """Whitens blocks of neighbouring channels.

    y = W (x - mean),    W S' Wᵀ = I
    S' = (1 - a) S + a μ I + ε c I,    μ = tr S / d

  S is the covariance of a block of d channels, and a is the shrinkage. For a
  relative ε, c is μ; for an absolute ε, c is 1. The map raises each eigenvalue
  of S' below floor · μ to floor · μ. The last block holds the remaining
  channels.

  The map sends a block of zero variance to zero. For float32, deviations above
  6e15, and below 7e-10 with a relative ε or with ε = 0, are near the ends of
  the range. The map sends a block of this scale to zero, with gradient zero.

  Non-finite activations give non-finite results. Finite activations, up to half
  of the largest number, give finite results with finite gradients. With fewer
  examples than channels S is singular (see `undetermined`). If the options then
  add nothing to S, the map damps the directions that only rounding decides.

  Attributes:
    method: The choice of W (see `roots`). 'newton_schulz' and 'zca' change the
      activations least. 'cholesky' depends on the order of the channels. 'pca'
      rotates the axes, and swaps two axes at a tie of eigenvalues.
    group_size: Number of channels of a block; None for one block of all
      channels.
    epsilon: ε, added to the diagonal, in units of the mean variance or in
      squared units of the activations (see `relative`).
    relative: Whether ε counts in units of the mean variance. A relative ε makes
      the map equivariant to scale. The papers use an absolute ε.
    shrinkage: a in [0, 1], or 'oas' for an estimate from S and the count that
      approximates the best a (Chen et al., 2010). A population counts as
      infinitely many activations, so 'oas' gives a = 0 at inference.
    floor: Least eigenvalue of S' in units of μ, in [0, 1). Every value except 0
      costs an eigendecomposition, also for 'newton_schulz'.
    options: Options of the method, as sorted pairs (see `roots`).
    average: What a population averages: 'covariance' for covariances, from
      which the map computes W at inference, or 'matrix' for the W of batches,
      as in the papers.

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
        'one block of all channels.'
      )
    # Configs give lists. Tuples are hashable, as a static value of jit must be.
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
    """Returns True, because whitening removes the scale of the activations."""
    return True

  def estimate(self, x, mask, axes, devices, groups=None) -> Moments:
    """Estimates mean and covariances of blocks of the last axis."""
    if x.ndim - 1 in axes or groups is not None:
      raise ValueError(
        'whitening needs the covariance of features, and this scope pools the '
        'features; take a scope that keeps the last axis, such as Batch().'
      )
    if mask is not None and mask.shape[-1] != 1:
      raise ValueError(
        f'mask of shape {mask.shape} tells features apart; a covariance needs '
        'whole examples: give the last axis of the mask size 1.'
      )
    # A block may cross the cuts of Explicit axes, so each device needs all
    # channels.
    size = self._block(x.shape[-1])
    x = meshes.whole_features(x)
    return covariances.estimate(x, mask, tuple(axes), size, devices)

  def initial(self, features: Shape, dtype: Any) -> Moments:
    """Returns mean 0, and the identity for each block, as covariance or W."""
    size = self._block(features[-1])
    blocks = -(-features[-1] // size)
    identities = jnp.broadcast_to(
      jnp.eye(size, dtype=dtype), (blocks, size, size)
    )
    count = jnp.ones(features, dtype)
    return Moments(count, jnp.zeros(features, dtype), identities)

  def remember(self, moments: Moments) -> Moments:
    """Returns the moments, with W as the covariance if W is averaged."""
    if self.average == 'covariance':
      return moments
    return moments.with_variance(self.pair(moments).spread)

  @property
  def ddof(self) -> int:
    """Returns 1, or 0 if W is averaged: n / (n - 1) is no factor of W."""
    return int(self.average == 'covariance')

  def remembering_moments(self) -> 'Whiten':
    """Returns the same whitening with an average of covariances."""
    return dataclasses.replace(self, average='covariance')

  def pair(self, moments: Moments) -> Pair:
    """Returns the mean, and W of each block."""
    channels = moments.mean.shape[-1]
    count = moments.count[..., :1, None, None]
    return Pair(moments.mean, self.root(moments.variance, channels, count))

  def recall(self, mean: jax.Array, var: jax.Array) -> Pair:
    """Returns the remembered mean, and W of each block."""
    if self.average == 'matrix':
      return Pair(mean, var)
    return Pair(mean, self.root(var, mean.shape[-1]))

  def undetermined(self, moments: Moments) -> jax.Array:
    """Counts the directions of each block that the examples do not determine.

    n centred examples span at most n - 1 directions. In the remaining
    directions the terms added to S decide, or rounding errors decide.

    Args:
      moments: Moments as `Normalization.measure` returns.

    Returns:
      int32 (..., blocks): 0 for a block with more examples than channels.
    """
    sizes = self._real(moments.comoment, moments.mean.shape[-1]).sum(-1)
    spanned = jnp.maximum(moments.count[..., :1] - 1, 0)
    return jnp.maximum(sizes - spanned, 0).astype(jnp.int32)

  def root(
    self, covariance: jax.Array, channels: int, count: Any = jnp.inf
  ) -> jax.Array:
    """Returns W of the covariance of each block.

    Args:
      covariance: S, (..., blocks, d, d), floating, zero beyond the last
        channel.
      channels: Number of channels in all blocks.
      count: Number of activations, for 'oas'.

    Returns:
      W, (..., blocks, d, d), of the dtype of S; beyond the last channel the
      identity.
    """
    real = self._real(covariance, channels)
    sizes = real.sum(-1)[..., None, None].astype(covariance.dtype)
    level = matrices.trace(covariance) / sizes
    # For any constant c, W(S) = W(S / c) / √c. A block of unit scale keeps the
    # powers in the root from overflow. The derivative of W with respect to S
    # may reach (eps c)^-³⁄², for the machine precision eps. The lower limit on
    # c keeps this bound below the largest number, about 1 / tiny.
    epsilon = checks.number_of_type(self.epsilon, level)
    unit = level if self.relative else level + epsilon
    limits = jnp.finfo(covariance.dtype)
    least, most = limits.tiny ** (2 / 3) / limits.eps, limits.max * limits.eps
    usable = (least < unit) & (unit < most)
    # W does not depend on the choice of c, so no derivative flows through c.
    unit = lax.stop_gradient(jnp.where(usable, unit, 1))
    # The identity replaces an unusable block before the root. A select only
    # after the root would turn an infinite derivative into NaN by 0 · inf.
    eye = matrices.identity_like(covariance)
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
    scale, bias = (
      affine if affine is None else affine.astype(wide_type(x))
      for affine in (scale, bias)
    )
    return covariances.whiten(x, mask, mean, pair.spread, scale, bias, dtype)

  def _real(self, covariance: jax.Array, channels: int) -> np.ndarray:
    """Returns which places (1, ..., blocks, d) of the blocks hold channels."""
    blocks, size = covariance.shape[-3], covariance.shape[-1]
    # As many axes as the covariance: JAX may be told to refuse to add axes.
    shape = (1,) * (covariance.ndim - 3) + (blocks, size)
    return np.arange(blocks * size).reshape(shape) < channels

  def _block(self, channels: int) -> int:
    size = self.group_size or channels
    if size > channels:
      raise ValueError(
        f'group_size={size} is more than the {channels} channels; choose at '
        f'most {channels}, or None for one block of all channels.'
      )
    return size

  def _regularized(self, covariance, level, unit, count, real) -> jax.Array:
    """Returns S' / c, also for the places beyond the last channel."""
    shrinkage: Any = self.shrinkage
    if shrinkage == 'oas':
      sizes = real.sum(-1)[..., None, None].astype(covariance.dtype)
      shrinkage = _oas(covariance, level, sizes, count)
    shrinkage = checks.number_of_type(shrinkage, level)
    epsilon = checks.number_of_type(self.epsilon, level)
    epsilon = epsilon * (level if self.relative else 1 / unit)
    # Places beyond the last channel usually get a diagonal of 1, which keeps S'
    # positive definite. Two methods need a diagonal of 0. 'pca' sorts the axes
    # by variance, and a variance of 0 sorts an empty axis last. A truncated
    # iteration starts from the trace, which an empty place must not change.
    truncated = 'num_iterations' in dict(self.options)
    beyond = 0.0 if truncated or self.method == 'pca' else 1.0
    diagonal = jnp.where(real[..., None], shrinkage * level + epsilon, beyond)
    eye = matrices.identity_like(covariance)
    regular = (1 - shrinkage) * covariance + diagonal * eye
    if is_array(self.floor) or self.floor:
      least = checks.number_of_type(self.floor, level) * level
      raised = eigen.floor_spectrum(regular, least)
      # The floor applies to channels only, so the empty places keep the
      # diagonal from above.
      both = real[..., :, None] & real[..., None, :]
      regular = jnp.where(both, raised, regular)
    if self.method != 'cholesky':
      return regular
    # For a matrix that is singular to rounding, Cholesky gives NaN or huge
    # entries; the other methods damp eigenvalues below eps. A block with this
    # failure gets a second try with a larger diagonal. The test for failure
    # needs no derivative.
    root = roots.cholesky(lax.stop_gradient(regular))
    eps = jnp.finfo(eye.dtype).eps
    failed = ~jnp.all(jnp.abs(root) <= eps**-0.5, (-2, -1), keepdims=True)
    # In S' / c the eigenvalues are at most about d. The rounding errors of S
    # are therefore as large as this shift.
    size = covariance.shape[-1]
    least = size * max(size, 16) * eps
    shifted = jnp.where(failed, regular + least * eye, regular)
    # Non-finite activations must give non-finite results, so the shift leaves
    # non-finite entries unchanged.
    return jnp.where(jnp.isfinite(regular), shifted, regular)


def _oas(covariance, level, sizes, count) -> jax.Array:
  """Returns the oracle approximating shrinkage, for p channels, n examples.

    ((1 - 2/p) tr S² + tr² S) / ((n + 1 - 2/p) (tr S² - tr² S / p)),  at most 1

  Source: Chen et al. (2010), equation 23.
  """
  squares = jnp.sum(covariance**2, (-2, -1), keepdims=True) / sizes**2
  spread = squares - level**2 / sizes
  # The target of the shrinkage is a multiple of I. For a single channel, and
  # for S equal to the target to rounding, the quotient would be 0 / 0. A
  # shrinkage of 0 then gives the same S'.
  is_distinct = spread > jnp.finfo(spread.dtype).eps * squares
  spread = jnp.where(is_distinct, spread, 1)
  ratio = ((1 - 2 / sizes) * squares + level**2) / spread
  shrinkage = ratio / jnp.maximum(count + 1 - 2 / sizes, 1)
  return jnp.where(is_distinct, jnp.clip(shrinkage, 0, 1), 0)
