"""The named points with the mini-batch for a scope."""

from bn_research.norms import gradients
from bn_research.norms.collectives import AxisNames
from bn_research.norms.normalization import Normalization
from bn_research.norms.population import Ema
from bn_research.norms.scopes import Batch
from bn_research.norms.standardize import Standardize


def batch_norm(
  momentum: float = 0.99,
  epsilon: float = 1e-5,
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


def none(**ignored) -> Normalization:
  """No normalization: y = x.

  It takes and ignores the options of every other, so that a config or a sweep
  switches normalization off by the name alone.
  """
  del ignored
  return Normalization(Batch(), Standardize(centre=False, scale=False))
