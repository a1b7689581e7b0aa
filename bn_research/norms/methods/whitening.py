"""The named points that whiten."""

from typing import Literal

from bn_research.norms import gradients
from bn_research.norms.combine import Chain
from bn_research.norms.maps.whiten import Method, Whiten
from bn_research.norms.normalization import Normalization
from bn_research.norms.populations import Ema, Interval
from bn_research.norms.pytrees import Schedule
from bn_research.norms.scopes import Batch, Example
from bn_research.norms.statistics.collectives import AxisNames


def batch_whitening(
  method: Method = 'newton_schulz',
  group_size: int | None = None,
  epsilon: Schedule = 1e-5,
  *,
  momentum: Schedule = 0.99,
  ghost_size: int | None = None,
  relative: bool = True,
  shrinkage: Schedule | Literal['oas'] = 0.0,
  floor: Schedule = 0.0,
  num_iterations: int | None = None,
  average: Literal['covariance', 'matrix'] = 'covariance',
  unbiased: bool = True,
  every: int | None = None,
  refinements: int = 0,
  axis_name: AxisNames = None,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization | Chain:
  """Batch whitening: features decorrelated over the mini-batch.

    y = W (x - E x),    W Cov(x) Wᵀ = I

  Args:
    method: Which W: 'newton_schulz' or 'zca' (symmetric), 'cholesky', 'pca'.
    group_size: Channels of a block, whitened by itself; None for one block.
    epsilon: Added to the diagonal of the covariance.
    momentum: Weight of the old value in the running averages, debiased.
    ghost_size: None, or examples that share statistics.
    relative: Whether `epsilon` counts in units of the mean variance.
    shrinkage: Toward a multiple of the identity, in [0, 1], or 'oas'.
    floor: Least eigenvalue of the covariance, in units of the mean variance.
    num_iterations: Of Newton-Schulz; None to iterate to rounding.
    average: What inference averages: covariances, or matrices as in the papers.
    unbiased: Whether running covariances are multiplied by n / (n - 1).
    every: None to whiten each batch by itself; or whiten by running covariances
      through a W that is renewed every so many steps and constant in between.
    refinements: How often the result is whitened again.
    axis_name: Named mesh axes to pool over.
    gradient: What of the statistics is differentiated (see `gradients`).

  Returns:
    The normalization; a `Chain` where refined.

  Raises:
    ValueError: For an option out of range, or options that exclude each other.

  Source: Huang et al. (2018); Huang et al. (2019); Ioffe and Szegedy (2015),
  Section 2.
  """
  if refinements < 0:
    raise ValueError(f'refinements={refinements} must not be negative.')
  if every is not None and gradient != 'through':
    raise ValueError(
      f'every={every} whitens with constants, so gradient={gradient!r} has no '
      'effect; leave one of the two out.'
    )
  if num_iterations is not None and method != 'newton_schulz':
    raise ValueError(
      f'num_iterations={num_iterations} is of newton_schulz, and method is '
      f'{method!r}; leave it out.'
    )
  options = (
    () if num_iterations is None else (('num_iterations', num_iterations),)
  )
  whiten = Whiten(
    method, group_size, epsilon, relative, shrinkage, floor, options, average
  )
  average_ = Ema(momentum, unbiased=unbiased)
  population = average_ if every is None else Interval(every, average_)
  normalization = Normalization(
    Batch(ghost_size, axis_name=axis_name),
    whiten,
    population,
    gradients.recalled if every else gradients.resolve(gradient),
  )
  if not refinements:
    return normalization
  return Chain((normalization,) * (refinements + 1))


def decorrelated_batch_norm(
  group_size: int | None = 16,
  epsilon: Schedule = 1e-5,
  *,
  momentum: Schedule = 0.9,
  average: Literal['covariance', 'matrix'] = 'matrix',
  debias: bool = True,
  axis_name: AxisNames = None,
) -> Normalization:
  """Decorrelated batch normalization: ZCA whitening in groups of channels.

  Args:
    group_size: Channels of a block; None for one block.
    epsilon: Added to the diagonal of the covariance, absolute.
    momentum: As for `batch_whitening`.
    average: What inference averages. The paper averages matrices.
    debias: Whether the average forgets its initial value exactly. The published
      average starts at the identity and does not: give False for the published
      one. At inference the two differ by 83 % after one update and by 2 % after
      50 updates at the default momentum.
    axis_name: As for `batch_whitening`.

  Returns:
    The normalization.

  Source: Huang et al. (2018), Algorithm 1.
  """
  whiten = Whiten('zca', group_size, epsilon, False, average=average)
  return _as_published(whiten, momentum, debias, axis_name)


def iter_norm(
  group_size: int | None = None,
  num_iterations: int = 5,
  epsilon: Schedule = 1e-5,
  *,
  momentum: Schedule = 0.9,
  average: Literal['covariance', 'matrix'] = 'matrix',
  debias: bool = True,
  axis_name: AxisNames = None,
) -> Normalization:
  """Iterative normalization: a fixed number of Newton-Schulz steps.

  Stopped early, and normalized by the trace as in the paper, it whitens less
  the less variance a direction has, and the more channels there are.

  Args:
    group_size: Channels of a block; None for one block.
    num_iterations: T of the paper.
    epsilon: Added to the diagonal of the covariance, absolute.
    momentum: As for `batch_whitening`.
    average: What inference averages. The paper averages matrices.
    debias: Whether the average forgets its initial value exactly. The published
      average starts at the identity and does not: give False for the published
      one. At inference the two differ by 83 % after one update and by 2 % after
      50 updates at the default momentum.
    axis_name: As for `batch_whitening`.

  Returns:
    The normalization.

  Source: Huang et al. (2019), Algorithm 1.
  """
  options = (('normalizer', 'trace'), ('num_iterations', num_iterations))
  whiten = Whiten(
    'newton_schulz',
    group_size,
    epsilon,
    relative=False,
    options=options,
    average=average,
  )
  return _as_published(whiten, momentum, debias, axis_name)


def _as_published(whiten, momentum, debias, axis_name):
  population = Ema(momentum, debias)
  return Normalization(Batch(axis_name=axis_name), whiten, population)


def instance_whitening(
  method: Method = 'newton_schulz',
  group_size: int | None = None,
  epsilon: Schedule = 1e-5,
  *,
  relative: bool = True,
  shrinkage: Schedule | Literal['oas'] = 0.0,
  floor: Schedule = 0.0,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Instance whitening: an example's channels decorrelated over its positions.

  Args:
    method: As for `batch_whitening`.
    group_size: As for `batch_whitening`.
    epsilon: As for `batch_whitening`.
    relative: As for `batch_whitening`.
    shrinkage: As for `batch_whitening`.
    floor: As for `batch_whitening`.
    gradient: As for `batch_whitening`.

  Returns:
    The normalization.

  Source: Pan et al. (2019), Section 3.1.
  """
  whiten = Whiten(method, group_size, epsilon, relative, shrinkage, floor)
  return _per_example(Example('positions'), whiten, gradient)


def group_whitening(
  num_groups: int = 32,
  method: Method = 'newton_schulz',
  epsilon: Schedule = 1e-5,
  *,
  relative: bool = True,
  gradient: str | gradients.Gradient = 'through',
) -> Normalization:
  """Group whitening: an example's groups of channels decorrelated.

  The groups are the dimensions; the channels of a group, at all positions, are
  the samples.

  Args:
    num_groups: Groups of neighbouring channels.
    method: As for `batch_whitening`.
    epsilon: As for `batch_whitening`.
    relative: As for `batch_whitening`.
    gradient: As for `batch_whitening`.

  Returns:
    The normalization.

  Source: Huang et al. (2021), equations 4 and 5.
  """
  whiten = Whiten(method, None, epsilon, relative)
  return _per_example(Example('all', num_groups), whiten, gradient)


def _per_example(scope: Example, whiten: Whiten, gradient) -> Normalization:
  return Normalization(scope, whiten, gradient=gradients.resolve(gradient))
