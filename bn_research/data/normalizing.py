"""Inputs centred, standardized or whitened over the whole training set."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bn_research import errors, ranges
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


def fit(x: np.ndarray, name: str, epsilon: float = 1e-2) -> Normalizer:
  """Fits a normalizer, exactly, to all examples; in float64.

  With m the mean, S the covariance, and λ = ε tr(S) / d:

  * `centre`: x - m;
  * `standardize`: (x - m) / √(diag(S) + λ);
  * `whiten`: (x - m) (S + λ I)^-½.

  Args:
    x: (num_examples, d), all of the training set.
    name: One of these.
    epsilon: ε: a pixel that is black in almost all images, and a direction in
      which they almost do not vary, are not to be blown up.

  Raises:
    UserError: If the name is unknown, or epsilon is not positive.
  """
  if name not in ('centre', 'standardize', 'whiten'):
    raise errors.UserError(
      f'data.normalize.name={name!r}; choose none, centre, standardize'
      ' or whiten'
    )
  ranges.positive('data.normalize', epsilon=epsilon)
  mean = x.mean(0, dtype=np.float64)
  if name == 'centre':
    return _float32(mean, np.ones_like(mean))
  covariance = _covariance(x, mean)
  level = epsilon * np.trace(covariance) / len(mean)
  if name == 'standardize':
    return _float32(mean, _inverse_root(np.diag(covariance) + level))
  values, vectors = np.linalg.eigh(covariance)
  # Rounding may leave an eigenvalue of zero below it.
  root = _inverse_root(np.maximum(values, 0) + level)
  return _float32(mean, (vectors * root) @ vectors.T)


def input_function(
  config: Mapping[str, Any], images: np.ndarray
) -> Callable[[jax.Array], jax.Array]:
  """Returns the function from stored images to what a network sees.

  Args:
    config: `config.data`: `binarize`, see `to_input`; and `normalize`, the
      `name` and the `epsilon` of `fit`, or the name `none`.
    images: (num_examples, height, width, channels) uint8, the training set.

  Returns:
    A function of (batch, height, width, channels) uint8 for use inside `jit`.

  Raises:
    UserError: If an option is unknown or out of range.
  """
  to_input = functools.partial(
    pipeline.to_input, binarize=config.get('binarize')
  )
  given = config.get('normalize') or {}
  options = {k: v for k, v in given.items() if v is not None}
  if options.get('name', 'none') == 'none':
    return to_input
  unknown = options.keys() - {'name', 'epsilon'}
  if unknown:
    raise errors.UserError(
      f'data.normalize has no option {min(unknown)!r}; it has name, epsilon'
    )
  x = np.asarray(to_input(jnp.asarray(images))).reshape(len(images), -1)
  normalizer = fit(x, **options)
  return lambda images: normalizer(to_input(images))


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
