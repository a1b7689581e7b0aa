"""Inputs centred, standardized or whitened over the whole training set."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bn_research import ranges, registry
from bn_research.data import pipeline

_CHUNK = 10_000


class Normalizer(NamedTuple):
  """x -> (x - mean) * scale, or (x - mean) @ scale for a matrix.

  Attributes:
    mean: (d,) float32.
    scale: (d,) float32, or (d, d).
  """

  mean: np.ndarray
  scale: np.ndarray

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes x, (batch, ...) with d numbers an example."""
    apart = x.reshape(len(x), -1) - self.mean
    if self.scale.ndim == 1:
      return (apart * self.scale).reshape(x.shape)
    whitened = jnp.matmul(apart, self.scale, precision='highest')
    return whitened.reshape(x.shape)


def centre(x: np.ndarray) -> Normalizer:
  """Fits x - m, where m is the mean of all examples; exactly, in float64.

  Args:
    x: (num_examples, d), all of the training set.
  """
  mean = x.mean(0, dtype=np.float64)
  return _float32(mean, np.ones_like(mean))


def standardize(x: np.ndarray, epsilon: float = 1e-2) -> Normalizer:
  """Fits (x - m) / √(diag(S) + λ), λ = ε tr(S) / d; exactly, in float64.

  Args:
    x: (num_examples, d), all of the training set, of mean m and covariance S.
    epsilon: ε: a pixel that is black in almost all images is not to be blown
      up.

  Raises:
    ValueError: If epsilon is not positive.
  """
  mean, covariance, level = _moments(x, epsilon)
  return _float32(mean, _inverse_root(np.diag(covariance) + level))


def whiten(x: np.ndarray, epsilon: float = 1e-2) -> Normalizer:
  """Fits (x - m) (S + λ I)^-½, λ = ε tr(S) / d; exactly, in float64.

  Args:
    x: (num_examples, d), all of the training set, of mean m and covariance S.
    epsilon: ε: a direction in which images almost do not vary is not to be
      blown up.

  Raises:
    ValueError: If epsilon is not positive.
  """
  mean, covariance, level = _moments(x, epsilon)
  values, vectors = np.linalg.eigh(covariance)
  # Rounding may leave an eigenvalue of zero below it.
  root = _inverse_root(np.maximum(values, 0) + level)
  return _float32(mean, (vectors * root) @ vectors.T)


NORMALIZERS: dict[str, Any] = {
  'none': None,
  'centre': centre,
  'standardize': standardize,
  'whiten': whiten,
}
"""What may be fitted to all training inputs, by name."""


def input_function(
  config: Mapping[str, Any], images: np.ndarray
) -> Callable[[jax.Array], jax.Array]:
  """Returns the function from stored images to what a network sees.

  Args:
    config: `config.data`: `binarize`, see `to_input`; and `normalize`, a key of
      `NORMALIZERS` and options, or `module:attribute`: a function of all
      training inputs, (num_examples, d), to a function of a batch of inputs.
    images: (num_examples, height, width, channels) uint8, the training set.

  Returns:
    A function of (batch, height, width, channels) uint8 for use inside `jit`.

  Raises:
    UserError: If an option is unknown or out of range.
  """
  to_input = functools.partial(
    pipeline.to_input, binarize=config.get('binarize')
  )
  where, section = 'config.data.normalize', config.get('normalize')
  name, options = registry.split(section)
  factory = registry.find(where, NORMALIZERS, name or 'none')
  if factory is None:
    return to_input
  x = np.asarray(to_input(jnp.asarray(images))).reshape(len(images), -1)
  normalizer = registry.call(where, factory, name, options, x=x)
  return lambda images: normalizer(to_input(images))


def _moments(
  x: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray, float]:
  """Returns the mean, the covariance and λ, in float64."""
  ranges.positive(epsilon=epsilon)
  mean = x.mean(0, dtype=np.float64)
  covariance = _covariance(x, mean)
  return mean, covariance, float(epsilon * np.trace(covariance) / len(mean))


def _covariance(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
  """The covariance in float64, of a chunk of examples at a time."""
  products = np.zeros((len(mean), len(mean)))
  for start in range(0, len(x), _CHUNK):
    apart = x[start : start + _CHUNK] - mean
    products += apart.T @ apart
  return products / len(x)


def _inverse_root(variances: np.ndarray) -> np.ndarray:
  """1 / √v, and 0 for the 0 of images that are all the same."""
  is_positive = variances > 0
  return is_positive / np.sqrt(np.where(is_positive, variances, 1))


def _float32(mean: np.ndarray, scale: np.ndarray) -> Normalizer:
  return Normalizer(mean.astype(np.float32), scale.astype(np.float32))
