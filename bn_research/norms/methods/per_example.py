"""The named points with the example, or part of it, for a scope."""

import jax
import jax.numpy as jnp

from bn_research.norms import checks, gradients
from bn_research.norms.maps.divide import Divide
from bn_research.norms.maps.standardize import Standardize
from bn_research.norms.normalization import Normalization
from bn_research.norms.pytrees import Schedule
from bn_research.norms.scopes import Example, Neighbourhood
from bn_research.norms.scopes.example import Pooled
from bn_research.norms.statistics.collectives import AxisNames
from bn_research.norms.statistics.moments import Moments


def layer_norm(
  epsilon: Schedule = 1e-6,
  *,
  axes: Pooled = 'features',
  axis_name: AxisNames = None,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Layer normalization: each example standardized over its features.

  Args:
    epsilon: Added to the variance.
    axes: 'features' for the last axis, at each position apart; 'all' for
      everything but the first; or axes by number.
    axis_name: Named mesh axes over which the pooled axes are spread.
    gradient: What of the statistics is differentiated (see `gradients`).

  Returns:
    The normalization.

  Source: Ba et al. (2016), equation 3.
  """
  return Normalization(
    Example(axes, axis_name=axis_name),
    Standardize(epsilon=epsilon),
    gradient=gradients.resolve(gradient),
  )


def rms_norm(
  epsilon: Schedule = 1e-6,
  *,
  axes: Pooled = 'features',
  axis_name: AxisNames = None,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Root mean square normalization: y = x / √(E x² + ε), nothing centred.

  Args:
    epsilon: Added to the mean square.
    axes: As for `layer_norm`.
    axis_name: As for `layer_norm`.
    gradient: As for `layer_norm`.

  Returns:
    The normalization.

  Source: Zhang and Sennrich (2019), equation 4.
  """
  return Normalization(
    Example(axes, axis_name=axis_name),
    Standardize(centre=False, epsilon=epsilon),
    gradient=gradients.resolve(gradient),
  )


def instance_norm(
  epsilon: Schedule = 1e-6,
  *,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Instance normalization: each channel of an example over its positions.

  Args:
    epsilon: Added to the variance.
    gradient: As for `layer_norm`.

  Returns:
    The normalization.

  Source: Ulyanov et al. (2016), equation 4.
  """
  return Normalization(
    Example('positions'),
    Standardize(epsilon=epsilon),
    gradient=gradients.resolve(gradient),
  )


def group_norm(
  num_groups: int | None = None,
  epsilon: Schedule = 1e-6,
  *,
  group_size: int | None = None,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Group normalization: an example's channels in groups, over all positions.

  Args:
    num_groups: Number of groups of neighbouring channels; 32 if neither this
      nor `group_size` is given.
    epsilon: Added to the variance.
    group_size: Instead, the channels of a group.
    gradient: As for `layer_norm`.

  Returns:
    The normalization.

  Raises:
    ValueError: If both numbers are given.

  Source: Wu and He (2018), equation 7.
  """
  if num_groups is None and group_size is None:
    num_groups = 32
  return Normalization(
    Example('all', num_groups, group_size),
    Standardize(epsilon=epsilon),
    gradient=gradients.resolve(gradient),
  )


def positional_norm(
  epsilon: Schedule = 1e-5,
  *,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Positional normalization: each position of an image over its channels.

  The arithmetic is that of `layer_norm` over the last axis; what the paper
  adds is to hand the moments on: take them with `Normalization.measure` and
  give the deviation and the mean as `scale` and `bias` to a later layer (the
  moment shortcut).

  Args:
    epsilon: Added to the variance.
    gradient: As for `layer_norm`.

  Returns:
    The normalization.

  Source: Li et al. (2019), equations 1 and 2.
  """
  return layer_norm(epsilon, gradient=gradient)


def filter_response_norm(
  epsilon: Schedule = 1e-6,
  *,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Filter response normalization: each channel's root mean square.

  To be followed by `thresholded_linear_unit`.

  Args:
    epsilon: Added to the mean square.
    gradient: As for `layer_norm`.

  Returns:
    The normalization.

  Source: Singh and Krishnan (2020), equations 1 and 2.
  """
  return Normalization(
    Example('positions'),
    Standardize(centre=False, epsilon=epsilon),
    gradient=gradients.resolve(gradient),
  )


def local_response_norm(
  size: int = 5, alpha: float = 1e-4, beta: float = 0.75, offset: float = 2.0
) -> Normalization:
  """Local response normalization over neighbouring channels.

    y = x / (offset + α Σ x²)^β

  Args:
    size: Channels of the window, odd.
    alpha: Weight of the sum of squares. PyTorch's `alpha` is `size` times as
      large.
    beta: The power.
    offset: Keeps small responses as they are.

  Returns:
    The normalization.

  Source: Krizhevsky et al. (2012), Section 3.3.
  """
  # The map has other names for these options, and so have its errors.
  checks.number('alpha', alpha, checks.is_non_negative)
  checks.number('beta', beta, checks.is_non_negative)
  return Normalization(
    Neighbourhood(size, 'features', border='zeros'),
    Divide(offset, alpha * size, beta),
  )


def local_contrast_norm(
  size: int = 9, sigma: float = 2.0, epsilon: Schedule = 1e-4
) -> Normalization:
  """Local contrast normalization over Gaussian windows in space.

  The paper divides by the larger of the local deviation and a constant; here
  the constant is added under the root, which is smooth.

  Args:
    size: Width of the window, odd.
    sigma: Deviation of its weights, in positions.
    epsilon: Added to the local variance.

  Returns:
    The normalization; each channel by itself.

  Source: Jarrett et al. (2009), Section 2.1.
  """
  return Normalization(
    Neighbourhood(size, 'positions', sigma), Standardize(epsilon=epsilon)
  )


def divisive_norm(size: int = 5, epsilon: Schedule = 1.0) -> Normalization:
  """Divisive normalization over windows in space.

  Args:
    size: Width of the window, odd.
    epsilon: σ², the square of the smoothing term.

  Returns:
    The normalization; each channel by itself.

  Source: Ren et al. (2017), equation 3.
  """
  return Normalization(
    Neighbourhood(size, 'positions'), Standardize(epsilon=epsilon)
  )


def absolute_scale(moments: Moments, epsilon: float = 1e-6) -> jax.Array:
  """The absolute scale that a per-example normalization takes away.

    (mean, log √(var + ε)), stacked along a new last axis

  Statistics of a single example discard the absolute scale of its activations
  (Ioffe and Szegedy, 2015, Section 2); give this to a later layer as features.

  Args:
    moments: From `Normalization.measure`.
    epsilon: That of the normalization.

  Returns:
    An array of the shape of the mean, and a last axis of 2.
  """
  log_deviation = 0.5 * jnp.log(moments.variance + epsilon)
  return jnp.stack([moments.mean, log_deviation], axis=-1)
