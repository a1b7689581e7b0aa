"""What is remembered of batches: weighed averages of their moments.

An oracle takes (x, mask) of all batches so far and returns mean and variance.
"""

import numpy as np

from tests.oracles import sets


def averaged(weights, moments):
  """Ioffe and Szegedy (2015), Algorithm 2, line 10, with weights for batches.

  Args:
    weights: From the number of batches to the weight of each, latest last.
    moments: From (x, mask) to the mean and variance of a batch.
  """

  def remember(history):
    means, variances = zip(*(moments(*batch) for batch in history), strict=True)
    weight = weights(len(history))
    return (
      np.average(means, axis=0, weights=weight),
      np.average(variances, axis=0, weights=weight),
    )

  return remember


def unbiased(x, mask):
  """Mean, and n / (n - 1) times the variance: Algorithm 2, line 10."""
  count, mean, var = sets.moments(x, mask)
  return mean, var * count / (count - 1)


def biased(x, mask):
  """Mean and variance."""
  return sets.moments(x, mask)[1:]


def about_zero(x, mask):
  """Zero and the mean square."""
  _, mean, var = sets.moments(x, mask)
  return np.zeros_like(mean), var + mean**2


def medians(x, mask):
  """Median and squared median absolute deviation, as `sets.by_median` has."""
  whole = np.broadcast_to(mask, x.shape)
  columns = [x[..., c][whole[..., c]] for c in range(x.shape[-1])]
  middle = np.array([np.median(column) for column in columns])
  spread = [
    np.median(np.abs(c - m)) for c, m in zip(columns, middle, strict=True)
  ]
  return middle, (1.4826 * np.array(spread)) ** 2


def decaying(momentum, moments=unbiased):
  """Weights 1, m, m², ... from the latest batch back, summing to one."""
  ages = lambda steps: np.arange(steps)[::-1]
  return averaged(lambda steps: float(momentum) ** ages(steps), moments)


def equal(moments=unbiased):
  """The same weight for every batch."""
  return averaged(np.ones, moments)
