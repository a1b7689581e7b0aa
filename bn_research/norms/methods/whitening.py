"""Named normalizations that whiten."""

from typing import Literal

from bn_research.norms import gradients
from bn_research.norms.combine import Chain
from bn_research.norms.maps.whiten import Method, Whiten
from bn_research.norms.normalization import Normalization
from bn_research.norms.populations import Ema, Interval
from bn_research.norms.pytrees import Schedule
from bn_research.norms.scopes import Batch, Example
from bn_research.norms.scopes.batch import GroupSize
from bn_research.norms.statistics.collectives import AxisNames


def batch_whitening(
  method: Method = 'newton_schulz',
  group_size: int | None = None,
  epsilon: Schedule = 1e-5,
  *,
  momentum: Schedule = 0.99,
  ghost_size: GroupSize = None,
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
    method: The choice of W: 'newton_schulz' or 'zca' (both symmetric),
      'cholesky' or 'pca'.
    group_size: Number of channels of a block; None for one block of all
      channels. Each block is whitened separately.
    epsilon: ε, added to the diagonal of the covariance.
    momentum: Weight of the old value in the running averages, in [0, 1). The
      averages are free of bias from the first update on.
    ghost_size: None for the whole batch, 'device' for the examples of each
      device, or the number of examples that share statistics (ghost batches).
    relative: Whether ε counts in units of the mean variance. Otherwise ε counts
      in squared units of the activations.
    shrinkage: Weight of a multiple of the identity in the covariance, in
      [0, 1], or 'oas' for an estimate of the best weight.
    floor: Least eigenvalue of the covariance, in units of the mean variance, in
      [0, 1).
    num_iterations: Number of steps of Newton-Schulz; None to iterate until only
      rounding errors remain.
    average: What inference averages: 'covariance', or 'matrix' for the matrices
      W, as in the papers.
    unbiased: Whether to multiply running covariances by n / (n - 1), for n
      activations.
    every: None to whiten each batch with the covariance of the batch. A number
      of steps to whiten with the running covariance; W is then constant between
      two renewals, `every` steps apart.
    refinements: Number of further whitenings of the result.
    axis_name: Names of the mesh axes to pool over, under `shard_map`, `pmap` or
      `vmap`.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization, or a `Chain` of normalizations with `refinements`.

  Raises:
    ValueError: If an option is out of range, or if two options exclude each
      other.

  Source: Huang et al. (2018), equations 4 and 5; Huang et al. (2019); Ioffe and
  Szegedy (2015), Section 2.
  """
  if refinements < 0:
    raise ValueError(f'refinements={refinements} must not be negative.')
  if every is not None and gradient != 'through':
    raise ValueError(
      f'every={every} whitens with constants, so gradient={gradient!r} has no '
      'effect; give every or gradient but not both.'
    )
  if num_iterations is not None and method != 'newton_schulz':
    raise ValueError(
      f'num_iterations={num_iterations} is an option of newton_schulz, and '
      f'method is {method!r}; leave num_iterations out.'
    )
  options = (
    () if num_iterations is None else (('num_iterations', num_iterations),)
  )
  whiten = Whiten(
    method, group_size, epsilon, relative, shrinkage, floor, options, average
  )
  # With `every`, W comes from the population, so the statistics of the batch
  # get no gradient.
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
  # A whitening with ε, or with few iterations, leaves some correlation. Each
  # further whitening estimates and removes a part of the rest.
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

    y = W (x - E x),    W = (Cov(x) + ε I)^-1/2

  Args:
    group_size: Number of channels of a block; None for one block of all
      channels. Each block is whitened separately.
    epsilon: ε, added to the diagonal of the covariance, in squared units of the
      activations.
    momentum: Weight of the old value in the running averages, in [0, 1).
    average: What inference averages: 'covariance', or 'matrix' for the matrices
      W. The paper averages matrices.
    debias: Whether the average forgets the initial value exactly. The published
      average starts at the identity and keeps a share of the identity: give
      False for the published average. At inference the two choices differ by
      83 % after one update and by 2 % after 50 updates, at the default
      momentum.
    axis_name: Names of the mesh axes to pool over, under `shard_map`, `pmap` or
      `vmap`.

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

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

    y = W (x - E x),    W ≈ (Cov(x) + ε I)^-1/2

  As in the paper, the iteration starts from the covariance over the trace, and
  stops early. Directions of small variance are therefore whitened only in part,
  most of all with many channels.

  Args:
    group_size: Number of channels of a block; None for one block of all
      channels. Each block is whitened separately.
    num_iterations: Number of Newton-Schulz steps, T in the paper.
    epsilon: ε, added to the diagonal of the covariance, in squared units of the
      activations.
    momentum: Weight of the old value in the running averages, in [0, 1).
    average: What inference averages: 'covariance', or 'matrix' for the matrices
      W. The paper averages matrices.
    debias: Whether the average forgets the initial value exactly. The published
      average starts at the identity and keeps a share of the identity: give
      False for the published average. At inference the two choices differ by
      83 % after one update and by 2 % after 50 updates, at the default
      momentum.
    axis_name: Names of the mesh axes to pool over, under `shard_map`, `pmap` or
      `vmap`.

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

  Source: Huang et al. (2019), Algorithm 1.
  """
  # The default normalizer of this library converges faster than the trace, so
  # the published results need the trace. Options are pairs in sorted order.
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
  """Instance whitening: channels of an example decorrelated over positions.

    y = W (x - E x),    W Cov(x) Wᵀ = I

  Args:
    method: The choice of W: 'newton_schulz' or 'zca' (both symmetric),
      'cholesky' or 'pca'.
    group_size: Number of channels of a block; None for one block of all
      channels. Each block is whitened separately.
    epsilon: ε, added to the diagonal of the covariance.
    relative: Whether ε counts in units of the mean variance. Otherwise ε counts
      in squared units of the activations.
    shrinkage: Weight of a multiple of the identity in the covariance, in
      [0, 1], or 'oas' for an estimate of the best weight.
    floor: Least eigenvalue of the covariance, in units of the mean variance, in
      [0, 1).
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

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
  """Group whitening: groups of channels of an example decorrelated.

    y = W (x - E x),    W Cov(x) Wᵀ = I

  The groups are the dimensions of the covariance. The channels of a group, at
  all positions, are the samples.

  Args:
    num_groups: Number of groups of neighbouring channels.
    method: The choice of W: 'newton_schulz' or 'zca' (both symmetric),
      'cholesky' or 'pca'.
    epsilon: ε, added to the diagonal of the covariance.
    relative: Whether ε counts in units of the mean variance. Otherwise ε counts
      in squared units of the activations.
    gradient: Which statistics get a gradient: 'through', 'stopped',
      'mean_only', 'spread_only', or a function (see `gradients`).

  Returns:
    The normalization.

  Raises:
    ValueError: If an option is out of range.

  Source: Huang et al. (2021), equations 4 and 5.
  """
  # The groups are the features here, so one block holds all groups.
  whiten = Whiten(method, None, epsilon, relative)
  return _per_example(Example('all', num_groups), whiten, gradient)


def _per_example(scope: Example, whiten: Whiten, gradient) -> Normalization:
  return Normalization(scope, whiten, gradient=gradients.resolve(gradient))
