"""Named normalizations with an example or part of an example, as scope."""

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
  """Layer normalization: each example standardized over the features.

    y = (x - E x) / √(Var x + ε)

  Args:
    epsilon: ε, added to the variance, in squared units of the activations.
    axes: 'features' to pool the last axis, separately at each position; 'all'
      to pool all axes except the first; or axes by number.
    axis_name: Names of the mesh axes over which the pooled axes are spread.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

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
  """Root mean square normalization: layer normalization without centring.

    y = x / √(E x² + ε)

  Args:
    epsilon: ε, added to the mean square, in squared units of the activations.
    axes: 'features' to pool the last axis, separately at each position; 'all'
      to pool all axes except the first; or axes by number.
    axis_name: Names of the mesh axes over which the pooled axes are spread.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

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
  """Instance normalization: each channel of an example, over all positions.

    y = (x - E x) / √(Var x + ε)

  Args:
    epsilon: ε, added to the variance, in squared units of the activations.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

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
  """Group normalization: each group of channels, over all positions.

    y = (x - E x) / √(Var x + ε)

  Args:
    num_groups: Number of groups of neighbouring channels. The default is 32
      groups, unless `group_size` is given.
    epsilon: ε, added to the variance, in squared units of the activations.
    group_size: Number of channels in a group, as an alternative to
      `num_groups`.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range, or if `num_groups` and
      `group_size` are both given.

  Source: Wu and He (2018), equation 7.
  """
  # The signature cannot hold the default 32 of the paper: a caller who gives
  # `group_size` would then give both numbers.
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
  """Positional normalization: each position of an image, over the channels.

    y = (x - E x) / √(Var x + ε)

  The arithmetic equals `layer_norm` over the last axis. The paper adds the
  moment shortcut: a later layer takes the deviation as `scale` and the mean as
  `bias`. `Normalization.measure` returns the moments for the shortcut.

  Args:
    epsilon: ε, added to the variance, in squared units of the activations.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

  Source: Li et al. (2019), equations 1 and 2.
  """
  return layer_norm(epsilon, gradient=gradient)


def filter_response_norm(
  epsilon: Schedule = 1e-6,
  *,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Filter response normalization: root mean square of each channel.

    y = x / √(E x² + ε)

  The activation `thresholded_linear_unit` follows the normalization.

  Args:
    epsilon: ε, added to the mean square, in squared units of the activations.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

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
    size: Number of channels in the window, odd.
    alpha: α, the weight of the sum of squares. The `alpha` of PyTorch is `size`
      times as large.
    beta: β, the power.
    offset: Added to the weighted sum, so that small activations are divided by
      a constant.

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

  Source: Krizhevsky et al. (2012), Section 3.3.
  """
  # An error of the map would name the options of the map, `gain` and `power`.
  # A check here names the options of the caller.
  checks.number('alpha', alpha, checks.is_non_negative)
  checks.number('beta', beta, checks.is_non_negative)
  # The published sum runs over the existing channels only. A mean with zeros
  # beyond the border, times `size`, is the same sum.
  return Normalization(
    Neighbourhood(size, 'features', border='zeros'),
    Divide(offset, alpha * size, beta),
  )


def local_contrast_norm(
  size: int = 9, sigma: float = 2.0, epsilon: Schedule = 1e-4
) -> Normalization:
  """Local contrast normalization over Gaussian windows in space.

    y = (x - E x) / √(Var x + ε)

  E and Var are weighted by the window. The paper divides by the larger of the
  local deviation and a constant. Here the root contains the constant ε, so the
  result is a smooth function.

  Args:
    size: Width of the window in positions, odd.
    sigma: Standard deviation of the Gaussian weights, in positions.
    epsilon: ε, added to the local variance, in squared units of the
      activations.

  Returns:
    The normalization, which treats each channel separately.

  Raises:
    ValueError: If an option is out of range.

  Source: Jarrett et al. (2009), Section 2.1.
  """
  return Normalization(
    Neighbourhood(size, 'positions', sigma), Standardize(epsilon=epsilon)
  )


def divisive_norm(size: int = 5, epsilon: Schedule = 1.0) -> Normalization:
  """Divisive normalization over windows in space.

    y = (x - E x) / √(Var x + σ²)

  Args:
    size: Width of the window in positions, odd.
    epsilon: σ², the square of the smoothing term.

  Returns:
    The normalization, which treats each channel separately.

  Raises:
    ValueError: If an option is out of range.

  Source: Ren et al. (2017), equation 3.
  """
  return Normalization(
    Neighbourhood(size, 'positions'), Standardize(epsilon=epsilon)
  )


def absolute_scale(moments: Moments, epsilon: float = 1e-6) -> jax.Array:
  """Returns the absolute scale that a per-example normalization removes.

    (mean, log √(var + ε)), stacked along a new last axis

  Statistics of a single example discard the absolute scale of the activations
  (Ioffe and Szegedy, 2015, Section 2). A later layer can take the result as
  additional features.

  Args:
    moments: Moments from `Normalization.measure`.
    epsilon: The ε of the normalization.

  Returns:
    An array (*mean.shape, 2), of the dtype of the mean.
  """
  # Half a logarithm replaces the root, whose derivative is infinite at zero.
  log_deviation = 0.5 * jnp.log(moments.variance + epsilon)
  return jnp.stack([moments.mean, log_deviation], axis=-1)
