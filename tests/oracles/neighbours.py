"""The statistic-free neighbours of normalization."""

import math

import numpy as np

from tests.oracles import sets


def dynamic_tanh(x, mask, epsilon, past, *, alpha):
  """Zhu et al. (2025), equation 1."""
  del epsilon, past
  return np.where(mask, np.tanh(alpha * x), 0)


def dynamic_erf(x, mask, epsilon, past, *, alpha, shift):
  """Chen et al. (2025): erf(α x + s)."""
  del epsilon, past
  return np.where(mask, np.vectorize(math.erf)(alpha * x + shift), 0)


def _deviations(labels, x, mask, epsilon):
  """√(Var + ε) of the set of each activation."""
  spread = np.full_like(x, np.sqrt(epsilon))
  for label in np.unique(labels):
    kept = x[(labels == label) & mask]
    if kept.size:
      spread[labels == label] = np.sqrt(kept.var() + epsilon)
  return spread


def _own(x, mask, epsilon, v):
  return v * x + _deviations(sets.instance(x.shape), x, mask, epsilon)


def evonorm_b0(x, mask, epsilon, past, *, v):
  """Liu et al. (2020), Table 2: x / max(σ_batch, v x + σ_instance)."""
  del past
  of_batch = _deviations(sets.batch(x.shape), x, mask, epsilon)
  y = x / np.maximum(of_batch, _own(x, mask, epsilon, v))
  return np.where(mask, y, 0)


def evonorm_b0_running(x, mask, epsilon, past, *, v):
  """The same with the remembered σ_batch."""
  known = np.sqrt(past.var + epsilon)
  y = x / np.maximum(known, _own(x, mask, epsilon, v))
  return np.where(mask, y, 0)


def evonorm_s0(num_groups):
  """Liu et al. (2020), Table 2: x sigmoid(v x) / σ_group."""

  def oracle(x, mask, epsilon, past, *, v):
    del past
    labels = sets.group(x.shape, num_groups)
    y = x / (1 + np.exp(-v * x)) / _deviations(labels, x, mask, epsilon)
    return np.where(mask, y, 0)

  return oracle
