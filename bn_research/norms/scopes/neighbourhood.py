"""The neighbourhood scope: a window of channels or of positions."""

import dataclasses
import math
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bn_research.norms.axes import Map, Scope
from bn_research.norms.statistics.moments import (
  Axes,
  Moments,
  apply_mask,
  wide,
)
from bn_research.norms.statistics.views import View, as_tuples, canonical_axes


@dataclasses.dataclass(frozen=True)
class Neighbourhood(Scope):
  """Each activation with the nearby activations of the same example.

  The mean is the weighted mean of the window around an activation. The second
  moment is the weighted mean of squared deviations in the window. Each
  deviation is taken from the mean of the window around the deviating
  activation, as in local contrast and divisive normalization, or from zero.

  Attributes:
    size: Width of the window along each axis, an odd number of activations.
    axes: 'features' for a window of channels, 'positions' for a window in
      space, or axes by number.
    sigma: None for equal weights, or the standard deviation of Gaussian
      weights, in activations.
    border: 'exclude' to leave out the part of a window beyond the border, or
      'zeros' to count this part as zeros.

  Source: Jarrett et al. (2009), Section 2.1; Ren et al. (2017), equation 3.
  """

  shares: ClassVar[bool] = False

  size: int = 5
  axes: int | Axes | Literal['features', 'positions'] = 'positions'
  sigma: float | None = None
  border: Literal['exclude', 'zeros'] = 'exclude'

  def __post_init__(self):
    object.__setattr__(self, 'axes', as_tuples(self.axes))
    if self.size < 1 or self.size % 2 == 0:
      raise ValueError(f'size={self.size} must be odd, to have a middle.')
    if self.sigma is not None and not 0 < self.sigma < math.inf:
      raise ValueError(
        f'sigma={self.sigma} must be finite and above 0, or None for equal '
        'weights.'
      )
    if self.border not in ('exclude', 'zeros'):
      raise ValueError(f"border={self.border!r} must be 'exclude' or 'zeros'.")

  def objection(self, normalization: Any) -> str | None:
    """Returns the sentence on a map that does not fit."""
    map_ = normalization.map
    if map_.joint or not map_.ordinary:
      return (
        f'{self} takes the mean and the mean square of windows, and {map_} has '
        'statistics of another kind; take Batch() or Example() for the scope.'
      )
    return None

  def view(self, x: jax.Array, map_: Map) -> View:
    """Returns the view, with no axis cut."""
    return View(x.shape, self._axes(x.ndim))

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map_: Map
  ) -> tuple[Moments, Moments]:
    """Returns the moments of each window, as both results."""
    around = partial(self._window_sum, axes=view.axes)
    count = self._count(x, mask, around)
    x = apply_mask(mask, wide(x))
    mean = jnp.zeros_like(x)
    if map_.centre:
      # A mask may leave a window empty. The smallest normal number keeps the
      # quotient 0 / 0 at zero, and changes no other count.
      mean = around(x) / jnp.maximum(count, jnp.finfo(count.dtype).tiny)
    deviation = apply_mask(mask, x - mean)
    moments = Moments(count, mean, around(deviation * deviation))
    return moments, moments

  def _axes(self, ndim: int) -> Axes:
    if self.axes == 'features':
      return (ndim - 1,)
    if self.axes == 'positions':
      return tuple(range(1, ndim - 1))
    return canonical_axes(self.axes, ndim)

  def _weights(self) -> np.ndarray:
    """Returns the weights along each axis, with an average of 1."""
    if self.sigma is None:
      return np.ones(self.size)
    deviation = np.arange(self.size) - self.size // 2
    weights = np.exp(-0.5 * (deviation / self.sigma) ** 2)
    return weights * (self.size / weights.sum())

  def _count(self, x, mask, around) -> jax.Array:
    """Returns the sum of the weights in the window around each activation."""
    present = apply_mask(mask, jnp.ones(x.shape, wide(x).dtype))
    if self.border == 'exclude':
      return around(present)
    # Zeros beyond the border count, but masked activations do not count. The
    # window sum sees zeros in both places, hence the count by difference.
    absent = 1 - present
    full = float(self.size) ** len(self._axes(x.ndim))
    return full - around(absent)

  def _window_sum(self, x: jax.Array, axes: Axes) -> jax.Array:
    """Returns the weighted sum over the window around each activation.

    A product of weights along each axis is a weight of the window, so a sum
    along each axis in turn costs `size` terms an axis instead of `size` to the
    power of the number of axes.
    """
    half = self.size // 2
    for axis in axes:
      pad = [(half, half) if a == axis else (0, 0) for a in range(x.ndim)]
      padded = jnp.pad(x, pad)
      x = sum(
        weight * jax.lax.slice_in_dim(padded, k, k + x.shape[axis], axis=axis)
        for k, weight in enumerate(self._weights().tolist())
      )
    return x
