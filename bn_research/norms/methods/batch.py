"""Named normalizations with the mini-batch as scope."""

from bn_research.norms import gradients
from bn_research.norms.maps.standardize import Standardize
from bn_research.norms.normalization import Normalization
from bn_research.norms.populations import Ema
from bn_research.norms.pytrees import Schedule
from bn_research.norms.scopes import Batch, Reference
from bn_research.norms.scopes.batch import GroupSize
from bn_research.norms.statistics.collectives import AxisNames

# The schedules of Ioffe (2017), Section 4.1. Until update 5000 the bounds allow
# no correction, because young averages would make the correction inaccurate.
_R_MAX = gradients.Ramp(1.0, 3.0, 5000, 40000)
_D_MAX = gradients.Ramp(0.0, 5.0, 5000, 25000)


def batch_norm(
  momentum: Schedule = 0.99,
  epsilon: Schedule = 1e-5,
  *,
  group_size: GroupSize = None,
  axis_name: AxisNames = None,
  gradient: str | gradients.Gradient = 'through',
  unbiased: bool = True,
) -> Normalization:
  """Batch normalization: each feature standardized over the mini-batch.

    y = (x - E x) / √(Var x + ε)

  Args:
    momentum: Weight of the old value in the running averages, in [0, 1). The
      averages are free of bias from the first update on.
    epsilon: ε, added to the variance, in squared units of the activations.
    group_size: None for the whole batch, 'device' for the examples of each
      device, or the number of examples that share statistics (ghost batches).
    axis_name: Names of the mesh axes to pool over, under `shard_map`, `pmap` or
      `vmap`.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).
    unbiased: Whether to multiply running variances by n / (n - 1), for n
      activations.

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

  Source: Ioffe and Szegedy (2015), Algorithms 1 and 2. The paper averages
  over batches after training, and allows the decaying average in use here.
  """
  return Normalization(
    scope=Batch(group_size=group_size, axis_name=axis_name),
    map=Standardize(epsilon=epsilon),
    population=Ema(momentum, unbiased=unbiased),
    gradient=gradients.resolve(gradient),
  )


def mean_only_batch_norm(
  momentum: Schedule = 0.99,
  *,
  group_size: GroupSize = None,
  axis_name: AxisNames = None,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Mean-only batch normalization: each feature centred over the mini-batch.

    y = x - E x

  Args:
    momentum: Weight of the old value in the running averages, in [0, 1). The
      averages are free of bias from the first update on.
    group_size: None for the whole batch, 'device' for the examples of each
      device, or the number of examples that share statistics (ghost batches).
    axis_name: Names of the mesh axes to pool over, under `shard_map`, `pmap` or
      `vmap`.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

  Source: Salimans and Kingma (2016), Section 4.
  """
  return Normalization(
    Batch(group_size=group_size, axis_name=axis_name),
    Standardize(scale=False),
    Ema(momentum),
    gradients.resolve(gradient),
  )


def power_norm(
  momentum: Schedule = 0.99,
  epsilon: Schedule = 1e-5,
  *,
  group_size: GroupSize = None,
  axis_name: AxisNames = None,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Power normalization of the batch (PN-V): no centring.

    y = x / √(E x² + ε)

  The paper also takes running statistics of the gradient in the backward pass
  (PN). This function leaves the running statistics of the gradient out, because
  a gradient policy here is a function of batch and population only.

  Args:
    momentum: Weight of the old value in the running averages, in [0, 1). The
      averages are free of bias from the first update on.
    epsilon: ε, added to the mean square, in squared units of the activations.
    group_size: None for the whole batch, 'device' for the examples of each
      device, or the number of examples that share statistics (ghost batches).
    axis_name: Names of the mesh axes to pool over, under `shard_map`, `pmap` or
      `vmap`.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

  Source: Shen et al. (2020), Section 4.1.
  """
  # A mean square about zero is unbiased, without the factor n / (n - 1).
  return Normalization(
    Batch(group_size=group_size, axis_name=axis_name),
    Standardize(centre=False, epsilon=epsilon),
    Ema(momentum, unbiased=False),
    gradients.resolve(gradient),
  )


def batch_renorm(
  momentum: Schedule = 0.99,
  epsilon: Schedule = 1e-5,
  *,
  r_max: Schedule = _R_MAX,
  d_max: Schedule = _D_MAX,
  group_size: GroupSize = None,
  axis_name: AxisNames = None,
) -> Normalization:
  """Batch renormalization: values of inference, with gradients of the batch.

    y = r (x - E x) / √(Var x + ε) + d

  r is the ratio of the batch deviation to the running deviation. d is the
  difference of the batch mean and the running mean, over the running deviation.
  The factor r is clipped to [1 / r_max, r_max], and d is clipped to
  [-d_max, d_max]. r and d get no gradient.

  Args:
    momentum: Weight of the old value in the running averages, in [0, 1). The
      averages are free of bias from the first update on.
    epsilon: ε, added to the variance, in squared units of the activations.
    r_max: Bound of the ratio of deviations, at least 1: a number, or a function
      of the number of updates. The default is the schedule of the paper.
    d_max: Bound of the difference of means, in running deviations, at least 0:
      a number, or a function of the number of updates. The default is the
      schedule of the paper.
    group_size: None for the whole batch, 'device' for the examples of each
      device, or the number of examples that share statistics (ghost batches).
    axis_name: Names of the mesh axes to pool over, under `shard_map`, `pmap` or
      `vmap`.

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

  Source: Ioffe (2017), Algorithm 1 and Section 4.1.
  """
  # The paper compares biased deviations. With the factor n / (n - 1) the ratio
  # r would differ from 1 even for batches with equal statistics.
  return Normalization(
    Batch(group_size=group_size, axis_name=axis_name),
    Standardize(epsilon=epsilon),
    Ema(momentum, unbiased=False),
    gradients.Renormalized(r_max, d_max),
  )


def virtual_batch_norm(
  reference_size: int,
  momentum: Schedule = 0.99,
  epsilon: Schedule = 1e-5,
  *,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Virtual batch normalization: each example with a fixed reference batch.

  Args:
    reference_size: Number of rows of the reference batch, the first rows of
      every `x`.
    momentum: Weight of the old value in the running averages of the moments of
      the reference batch, in [0, 1).
    epsilon: ε, added to the variance, in squared units of the activations.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

  Source: Salimans et al. (2016), Section 3.5.
  """
  return Normalization(
    Reference(reference_size),
    Standardize(epsilon=epsilon),
    Ema(momentum),
    gradients.resolve(gradient),
  )


def none(**ignored) -> Normalization:
  """No normalization: y = x.

  A config or a sweep can switch normalization off by the name alone, because
  this factory accepts the options of every factory.

  Args:
    **ignored: Options of any factory, without effect.

  Returns:
    The normalization. Without centring and scaling the map changes nothing.
  """
  del ignored
  return Normalization(Batch(), Standardize(centre=False, scale=False))
