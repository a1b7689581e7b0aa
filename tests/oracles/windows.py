"""An activation and those near it: explicit loops over windows."""

import itertools

import numpy as np


def _window(size, sigma, axes):
  """Offsets in a window along `axes`, each with its weight."""
  apart = np.arange(size) - size // 2
  flat = np.ones(size)
  weight = flat if sigma is None else np.exp(-0.5 * (apart / sigma) ** 2)
  for offset in itertools.product(range(size), repeat=len(axes)):
    yield apart[list(offset)], np.prod(weight[list(offset)])


def _around(x, mask, index, axes, size, sigma=None):
  """Values and weights of what is near `index`, there and not masked out."""
  values, weights = [], []
  for apart, weight in _window(size, sigma, axes):
    near = np.array(index)
    near[list(axes)] += apart
    if (near >= 0).all() and (near < x.shape).all() and mask[tuple(near)]:
      values.append(x[tuple(near)])
      weights.append(weight)
  return np.array(values), np.array(weights)


def local_response(size, alpha, beta, offset):
  """Krizhevsky et al. (2012), 3.3: x / (k + α Σ x²)^β over near channels.

  Where some of the window are masked out, the others stand for them.
  """

  def oracle(x, mask, epsilon, past):
    del epsilon, past
    y = np.zeros_like(x)
    for index in map(tuple, np.argwhere(mask)):
      values, _ = _around(x, mask, index, (x.ndim - 1,), size)
      inside, _ = _around(x, np.ones_like(mask), index, (x.ndim - 1,), size)
      present = size - (len(inside) - len(values))  # beyond the border are 0s
      total = sum(values**2) * size / present
      y[index] = x[index] / (offset + alpha * total) ** beta
    return y

  return oracle


def local_contrast(size, sigma=None):
  """Jarrett et al. (2009), 2.1; Ren et al. (2017), equation 3.

  v = x - Σ w x and y = v / √(Σ w v² + ε) over a window in space, with weights
  that sum to one over what is there.
  """

  def oracle(x, mask, epsilon, past):
    del past
    axes = tuple(range(1, x.ndim - 1))
    apart, y = np.zeros_like(x), np.zeros_like(x)
    for index in map(tuple, np.argwhere(mask)):
      values, weights = _around(x, mask, index, axes, size, sigma)
      apart[index] = x[index] - np.average(values, weights=weights)
    for index in map(tuple, np.argwhere(mask)):
      values, weights = _around(apart, mask, index, axes, size, sigma)
      power = np.average(values**2, weights=weights)
      y[index] = apart[index] / np.sqrt(power + epsilon)
    return y

  return oracle
