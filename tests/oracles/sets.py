"""Which activations share statistics, and what is done with them.

Wu and He (2018), Section 3.1, name a normalization by the set S_i of the
activations that give activation i its statistics. Here `sets(shape)` is an
array of that shape in which two activations bear the same number where they
share a set.
"""

import numpy as np


def none(shape):
  """Every activation its own set."""
  return np.arange(np.prod(shape)).reshape(shape)


def batch(shape, group_size=None):
  """Ioffe and Szegedy (2015), 3.2: k_C = i_C; ghosts: and the same chunk."""
  index = np.indices(shape)
  chunk = index[0] // (group_size or shape[0])
  return chunk * shape[-1] + index[-1]


def features(shape):
  """Ba et al. (2016), equation 3: the last axis, at each position apart."""
  rows = np.arange(np.prod(shape[:-1])).reshape(shape[:-1])
  return np.repeat(rows[..., None], shape[-1], axis=-1)


def example(shape):
  """Layer norm of an image: k_N = i_N."""
  return np.indices(shape)[0]


def instance(shape):
  """Ulyanov et al. (2016), equation 4: k_N = i_N and k_C = i_C."""
  index = np.indices(shape)
  return index[0] * shape[-1] + index[-1]


def group(shape, num_groups):
  """Wu and He (2018), equation 7: k_N = i_N, ⌊k_C G/C⌋ = ⌊i_C G/C⌋."""
  index = np.indices(shape)
  size = shape[-1] // num_groups
  return index[0] * num_groups + index[-1] // size


def standardized(kept, epsilon):
  """(x - E x) / √(Var x + ε) over the members of one set."""
  mean = sum(kept) / len(kept)
  var = sum((kept - mean) ** 2) / len(kept)
  return (kept - mean) / np.sqrt(var + epsilon)


def by_rms(kept, epsilon):
  """Zhang and Sennrich (2019), equation 4: x / √(E x² + ε)."""
  return kept / np.sqrt(sum(kept**2) / len(kept) + epsilon)


def by_median(kept, epsilon):
  """Hampel (1974): (x - median) / √(d² + ε), d = 1.4826 median |x - median|."""
  median = np.median(kept)
  spread = 1.4826 * np.median(np.abs(kept - median))
  return (kept - median) / np.sqrt(spread**2 + epsilon)


def centred(kept, epsilon):
  """Salimans and Kingma (2016), equation 7: x - E x."""
  del epsilon
  return kept - sum(kept) / len(kept)


def unchanged(kept, epsilon):
  """Identity."""
  del epsilon
  return kept


def over(sets, change):
  """The oracle that changes each set apart."""

  def oracle(x, mask, epsilon, past):
    del past
    y = np.zeros_like(x)
    labels = sets(x.shape)
    for label in np.unique(labels):
      chosen = (labels == label) & mask
      if chosen.any():
        y[chosen] = change(x[chosen], epsilon)
    return y

  return oracle


def with_reference(size):
  """Salimans et al. (2016), 3.5: an example with the reference batch."""

  def oracle(x, mask, epsilon, past):
    del past
    y = np.zeros_like(x)
    for row in range(len(x)):
      rows = list(range(size)) + ([row] if row >= size else [])
      for c in range(x.shape[-1]):
        kept = x[rows, ..., c][mask[rows, ..., c]]
        if kept.size:
          spread = np.sqrt(kept.var() + epsilon)
          y[row, ..., c] = (x[row, ..., c] - kept.mean()) / spread
    return np.where(mask, y, 0)

  return oracle


def renormalized(r_max, d_max):
  """Ioffe (2017), Algorithm 1."""

  def oracle(x, mask, epsilon, past):
    _, mean, var = moments(x, mask)
    sigma, known = np.sqrt(var + epsilon), np.sqrt(past.var + epsilon)
    r = np.clip(sigma / known, 1 / r_max, r_max)
    d = np.clip((mean - past.mean) / known, -d_max, d_max)
    return np.where(mask, (x - mean) / sigma * r + d, 0)

  return oracle


def moments(x, mask):
  """Count, mean and biased variance of each feature of a batch."""
  whole = np.broadcast_to(mask, x.shape)
  columns = [x[..., c][whole[..., c]] for c in range(x.shape[-1])]
  return (
    np.array([len(column) for column in columns]),
    np.array([np.mean(column) for column in columns]),
    np.array([np.mean((c - c.mean()) ** 2) for c in columns]),
  )


def running(x, mask, epsilon, past):
  """Ioffe and Szegedy (2015), Algorithm 2, line 11, without the affine."""
  y = (x - past.mean) / np.sqrt(past.var + epsilon)
  return np.where(mask, y, 0)


def running_centred(x, mask, epsilon, past):
  """The same where nothing is divided."""
  del epsilon
  return np.where(mask, x - past.mean, 0)
