"""Centres, standardizes or whitens inputs, with moments of the training set."""

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
  """The function x -> (x - mean) * scale, or (x - mean) @ scale for a matrix.

  Attributes:
    mean: (d,) float32.
    scale: (d,) float32, or (d, d).
  """

  mean: np.ndarray
  scale: np.ndarray

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes a mini-batch.

    Args:
      x: (batch, ...) float32, with d numbers per example.

    Returns:
      Normalized inputs of the shape of `x`.
    """
    apart = x.reshape(len(x), -1) - self.mean
    if self.scale.ndim == 1:
      return (apart * self.scale).reshape(x.shape)
    # With the default precision, an accelerator would round the factors of the
    # product to bfloat16 or to TF32.
    whitened = jnp.matmul(apart, self.scale, precision='highest')
    return whitened.reshape(x.shape)


def centre(x: np.ndarray) -> Normalizer:
  """Fits x - m, with m the mean of all examples.

  The mean is exact, and computed in float64.

  Args:
    x: (num_examples, d), the whole training set.
  """
  mean = x.mean(0, dtype=np.float64)
  return _float32(mean, np.ones_like(mean))


def standardize(x: np.ndarray, epsilon: float = 1e-2) -> Normalizer:
  """Fits (x - m) / √(diag(S) + λ), with λ = ε tr(S) / d.

  The moments are exact, and computed in float64.

  Args:
    x: (num_examples, d), the whole training set, with mean m and covariance S.
    epsilon: ε, in units of the mean variance. ε limits the scale of a pixel
      that is black in almost all images.

  Raises:
    ValueError: If epsilon is not positive.
  """
  mean, covariance, level = _moments(x, epsilon)
  return _float32(mean, _inverse_root(np.diag(covariance) + level))


def whiten(x: np.ndarray, epsilon: float = 1e-2) -> Normalizer:
  """Fits (x - m) (S + λ I)^-½, with λ = ε tr(S) / d.

  The moments are exact, and computed in float64.

  Args:
    x: (num_examples, d), the whole training set, with mean m and covariance S.
    epsilon: ε, in units of the mean variance. ε limits the scale of a direction
      with almost no variance.

  Raises:
    ValueError: If epsilon is not positive.
  """
  mean, covariance, level = _moments(x, epsilon)
  values, vectors = np.linalg.eigh(covariance)
  # Rounding may make an eigenvalue of zero slightly negative.
  root = _inverse_root(np.maximum(values, 0) + level)
  return _float32(mean, (vectors * root) @ vectors.T)


NORMALIZERS: dict[str, Any] = {
  'none': None,
  'centre': centre,
  'standardize': standardize,
  'whiten': whiten,
}
"""Functions from all training inputs to a `Normalizer`, by name."""


def input_function(
  config: Mapping[str, Any], images: np.ndarray
) -> Callable[[jax.Array], jax.Array]:
  """Returns the function from stored images to inputs of the network.

  Args:
    config: The section `config.data`. `binarize` is the argument of `to_input`.
      `normalize` is a section with options, and with a name in `NORMALIZERS` or
      with a name `module:attribute`. This function of the user maps all
      training inputs, (num_examples, d), to a function of a mini-batch of
      inputs.
    images: (num_examples, height, width, channels) uint8, the training set.

  Returns:
    A function for use inside `jit`: from (batch, height, width, channels) uint8
    to float32 of the same shape.

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
  # The moments are of the results of `to_input`, the arguments of `normalizer`.
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
  """Returns the covariance in float64, as a sum over chunks of examples."""
  # A chunk bounds the memory of the centred examples in float64.
  products = np.zeros((len(mean), len(mean)))
  for start in range(0, len(x), _CHUNK):
    apart = x[start : start + _CHUNK] - mean
    products += apart.T @ apart
  return products / len(x)


def _inverse_root(variances: np.ndarray) -> np.ndarray:
  """Returns 1 / √v, but 0 for v = 0, as for a set of identical images."""
  is_positive = variances > 0
  return is_positive / np.sqrt(np.where(is_positive, variances, 1))


def _float32(mean: np.ndarray, scale: np.ndarray) -> Normalizer:
  return Normalizer(mean.astype(np.float32), scale.astype(np.float32))
