"""Whitening: y = W (x - mean) with W a root of a covariance, set by set."""

import numpy as np


def covariance(kept):
  """Mean and biased covariance of samples (n, d)."""
  mean = kept.sum(0) / len(kept)
  return mean, (kept - mean).T @ (kept - mean) / len(kept)


def regularized(matrix, epsilon, relative):
  """S + ε I, or S + ε (tr S / d) I."""
  level = np.trace(matrix) / len(matrix) if relative else 1
  return matrix + epsilon * level * np.eye(len(matrix))


def zca(matrix):
  """Huang et al. (2018), equation 4: U Λ^-½ Uᵀ."""
  values, vectors = np.linalg.eigh(matrix)
  return vectors / np.sqrt(values) @ vectors.T


def cholesky(matrix):
  """The inverse of the lower triangle L of S = L Lᵀ."""
  return np.linalg.inv(np.linalg.cholesky(matrix))


def iterated(num_iterations):
  """Huang et al. (2019), Algorithm 1: P ← (3 P - P³ S) / 2, S of trace one."""

  def root(matrix):
    trace = np.trace(matrix)
    p = np.eye(len(matrix))
    for _ in range(num_iterations):
      p = (3 * p - p @ p @ p @ (matrix / trace)) / 2
    return p / np.sqrt(trace)

  return root


def blocks(channels, size):
  """Slices of neighbouring channels; the last holds what remains."""
  return [
    slice(first, min(first + size, channels))
    for first in range(0, channels, size)
  ]


def batch(root=zca, relative=True, block=None, ghost=None):
  """Over the examples and positions of the batch, or of ghost batches."""

  def oracle(x, mask, epsilon, past):
    del past
    y, kept = np.zeros_like(x), mask.all(-1)
    for first in range(0, len(x), ghost or len(x)):
      rows = slice(first, first + (ghost or len(x)))
      for part in blocks(x.shape[-1], block or x.shape[-1]):
        z, there = x[rows, ..., part], kept[rows]
        if there.any():
          mean, matrix = covariance(z[there])
          w = root(regularized(matrix, epsilon, relative))
          y[rows, ..., part][there] = (z[there] - mean) @ w.T
    return y

  return oracle


def instance(root=zca):
  """Pan et al. (2019), 3.1: an example's channels over its positions."""
  one = batch(root)

  def oracle(x, mask, epsilon, past):
    rows = zip(x, mask, strict=True)
    return np.stack([one(*row, epsilon, past) for row in rows])

  return oracle


def group(num_groups, root=zca):
  """Huang et al. (2021), equation 4: groups are dimensions, members samples."""

  def oracle(x, mask, epsilon, past):
    cut = lambda z: np.swapaxes(
      z.reshape(*z.shape[:-1], num_groups, -1), -1, -2
    )
    y = instance(root)(cut(x), cut(mask), epsilon, past)
    return np.swapaxes(y, -1, -2).reshape(x.shape)

  return oracle


def moments(block=None, unbiased=True):
  """Mean and covariances of blocks, the last filled up with zeros."""

  def of_batch(x, mask):
    kept = x[np.broadcast_to(mask, x.shape).all(-1)]
    size = block or x.shape[-1]
    parts = blocks(x.shape[-1], size)
    var = np.zeros((len(parts), size, size))
    for number, part in enumerate(parts):
      _, matrix = covariance(kept[:, part])
      var[number, : len(matrix), : len(matrix)] = matrix
    if unbiased:
      var *= len(kept) / (len(kept) - 1)
    return kept.mean(0), var

  return of_batch


def matrices(root, epsilon, block=None):
  """Mean and W of blocks, beyond the last channel the identity."""

  def of_batch(x, mask):
    mean, var = moments(block, unbiased=False)(x, mask)
    for number, part in enumerate(blocks(len(mean), block or len(mean))):
      own = part.stop - part.start
      w = root(regularized(var[number, :own, :own], epsilon, False))
      var[number] = np.eye(len(var[number]))
      var[number, :own, :own] = w
    return mean, var

  return of_batch


def running(root=None, block=None, relative=True):
  """W (x - mean) with W made of what is remembered, or (None) remembered."""

  def oracle(x, mask, epsilon, past):
    y = np.zeros_like(x)
    for number, part in enumerate(blocks(x.shape[-1], block or x.shape[-1])):
      own = part.stop - part.start
      w = past.var[number, :own, :own]
      if root is not None:
        w = root(regularized(w, epsilon, relative))
      y[..., part] = (x - past.mean)[..., part] @ w.T
    return np.where(mask, y, 0)

  return oracle
