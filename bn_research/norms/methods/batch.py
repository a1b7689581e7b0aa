"""The named points with the mini-batch for a scope."""

from bn_research.norms import gradients
from bn_research.norms.maps.standardize import Standardize
from bn_research.norms.normalization import Normalization
from bn_research.norms.populations import Ema
from bn_research.norms.pytrees import Schedule
from bn_research.norms.scopes import Batch, Reference
from bn_research.norms.statistics.collectives import AxisNames

# The schedules of Ioffe (2017), Section 4.1.
_R_MAX = gradients.Ramp(1.0, 3.0, 5000, 40000)
_D_MAX = gradients.Ramp(0.0, 5.0, 5000, 25000)


def batch_norm(
  momentum: Schedule = 0.99,
  epsilon: Schedule = 1e-5,
  *,
  group_size: int | None = None,
  axis_name: AxisNames = None,
  gradient: str | gradients.Gradient = 'through',
  unbiased: bool = True,
) -> Normalization:
  """Batch normalization: each feature standardized over the mini-batch.

    y = (x - E x) / √(Var x + ε)

  Args:
    momentum: Weight of the old value in the running averages, which are
      debiased exactly from the first update on.
    epsilon: Added to the variance.
    group_size: None, or the size of ghost batches.
    axis_name: Named mesh axes to pool over, under `shard_map`, `pmap`, `vmap`.
    gradient: What of the statistics is differentiated: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).
    unbiased: Whether running variances are multiplied by n / (n - 1).

  Returns:
    The normalization.

  Source: Ioffe and Szegedy (2015), Algorithms 1 and 2. The paper averages over
  batches after training; a decaying average, which it allows, tracks training.
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
  group_size: int | None = None,
  axis_name: AxisNames = None,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Mean-only batch normalization: y = x - E x.

  Args:
    momentum: As for `batch_norm`.
    group_size: As for `batch_norm`.
    axis_name: As for `batch_norm`.
    gradient: As for `batch_norm`.

  Returns:
    The normalization.

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
  group_size: int | None = None,
  axis_name: AxisNames = None,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Power normalization of the batch, PN-V: y = x / √(E x² + ε).

  The paper goes on to running statistics of the gradient in the backward pass;
  those are not a function of (batch, population), and not here.

  Args:
    momentum: As for `batch_norm`.
    epsilon: Added to the mean square.
    group_size: As for `batch_norm`.
    axis_name: As for `batch_norm`.
    gradient: As for `batch_norm`.

  Returns:
    The normalization.

  Source: Shen et al. (2020), Section 4.1.
  """
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
  group_size: int | None = None,
  axis_name: AxisNames = None,
) -> Normalization:
  """Batch renormalization: inference's value in training, the batch's gradient.

  Args:
    momentum: As for `batch_norm`.
    epsilon: Added to the variance.
    r_max: Bound of the ratio of deviations; a number, or a function of the
      updates made so far. The default is the paper's schedule.
    d_max: Bound of the difference of means; likewise.
    group_size: As for `batch_norm`.
    axis_name: As for `batch_norm`.

  Returns:
    The normalization.

  Source: Ioffe (2017), Algorithm 1 and Section 4.1.
  """
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
    reference_size: Rows of the reference batch, which come first in `x`.
    momentum: As for `batch_norm`; of the moments of the reference batch.
    epsilon: Added to the variance.
    gradient: As for `batch_norm`.

  Returns:
    The normalization.

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

  It takes and ignores the options of every other, so that a config or a sweep
  switches normalization off by the name alone.
  """
  del ignored
  return Normalization(Batch(), Standardize(centre=False, scale=False))
