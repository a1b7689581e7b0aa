"""The patches under a convolution, position by position, in float64."""

import itertools
import math

import numpy as np


def pads_of(space, extents, strides, padding):
  """The zeros before and after each axis, for 'SAME' those of TensorFlow."""
  if padding == 'VALID':
    return [(0, 0)] * len(space)
  if padding != 'SAME':
    return padding
  pads = []
  for size, extent, stride in zip(space, extents, strides, strict=True):
    lacking = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
    pads.append((lacking // 2, lacking - lacking // 2))
  return pads


def spread(x, dilations):
  """Puts zeros between neighbours in space."""
  space = [
    (n - 1) * d + 1 for n, d in zip(x.shape[1:-1], dilations, strict=True)
  ]
  wide = np.zeros((len(x), *space, x.shape[-1]))
  wide[(slice(None), *(slice(None, None, d) for d in dilations))] = x
  return wide


def patches(
  x, size, strides, padding='VALID', input_dilation=None, dilation=None
):
  """Returns the rows that a kernel multiplies, (batch, *positions, d)."""
  ones = (1,) * len(size)
  dilation = dilation or ones
  x = spread(np.asarray(x, np.float64), input_dilation or ones)
  extents = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
  pads = pads_of(x.shape[1:-1], extents, strides, padding)
  # Negative padding crops.
  kept = [
    slice(max(-a, 0), n - max(-b, 0))
    for n, (a, b) in zip(x.shape[1:-1], pads, strict=True)
  ]
  x = x[(slice(None), *kept)]
  added = [(max(a, 0), max(b, 0)) for a, b in pads]
  x = np.pad(x, [(0, 0), *added, (0, 0)])
  counts = [
    (n - extent) // stride + 1
    for n, extent, stride in zip(x.shape[1:-1], extents, strides, strict=True)
  ]
  found = np.zeros((len(x), *counts, math.prod(size) * x.shape[-1]))
  for at in itertools.product(*map(range, counts)):
    window = tuple(
      slice(i * s, i * s + extent, d)
      for i, s, extent, d in zip(at, strides, extents, dilation, strict=True)
    )
    found[(slice(None), *at)] = x[(slice(None), *window)].reshape(len(x), -1)
  return found


def moments(rows):
  """Returns count, mean and comoment of the rows of a matrix."""
  apart = rows - rows.mean(0)
  return len(rows), rows.mean(0), apart.T @ apart


def whitening(rows, epsilon):
  """Returns W = (Λ + ε)^-½ Uᵀ of S = U Λ Uᵀ, by descending Λ, and the mean.

  The largest component of each row of W is positive.
  """
  mean = rows.mean(0)
  values, vectors = np.linalg.eigh(np.cov(rows.T, ddof=0))
  root = (vectors / np.sqrt(values + epsilon)).T[::-1]
  largest = root[np.arange(len(root)), np.abs(root).argmax(1)]
  return root * np.sign(largest)[:, None], mean
