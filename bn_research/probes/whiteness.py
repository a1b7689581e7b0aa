"""Measures the whiteness of layer inputs, the aim of Section 2."""

import jax
import jax.numpy as jnp

from bn_research import preconditioning
from bn_research.norms import Moments
from bn_research.probes.observation import Observation


def whiteness(observation: Observation) -> dict[str, jax.Array]:
  """Measures the whiteness of the inputs of dense layers and convolutions.

  With S the covariance of the d inputs of a kernel, λ the eigenvalues of S, and
  R the correlations of the inputs:

  * `condition`: λ_max / λ_min, at most 1 / ε, with ε the precision of float32;
  * `rank`: the effective rank, exp(−Σ p log p), p = λ / Σ λ, from 1 to d;
  * `correlation`: √(Σ_{i≠j} R_ij² / (d (d − 1))), from 0 to 1.

  White inputs have condition 1, rank d and correlation 0. The correlation
  ignores constant inputs, and d is then the number of non-constant inputs.

  Args:
    observation: The network and a mini-batch. The covariance is singular if the
      mini-batch has no more examples than a layer has inputs.

  Returns:
    Three numbers, () float32, for each layer: for example
    `'dense/0/condition'`, `'dense/0/rank'` and `'dense/0/correlation'`.

  Source: Roy and Vetterli (2007), "The effective rank", for the rank.
  """
  # `record_inputs` changes a model in place, and thus gets a copy.
  model = observation.model()
  moments = preconditioning.record_inputs(model)
  model(observation.x, train=True)
  return {
    f'{layer}/{name}': value
    for layer, of_inputs in moments.items()
    for name, value in _of_covariance(of_inputs).items()
  }


_NOISE = 64.0  # squared rounding errors, for sums over a mini-batch


def _of_covariance(moments: Moments) -> dict[str, jax.Array]:
  covariance = (moments.comoment / moments.count.max())[0]
  # A constant input has a small variance that is a rounding error of the mean.
  noise = jnp.finfo(covariance.dtype).eps * moments.mean
  varies = jnp.diag(covariance) > _NOISE * noise**2
  covariance = jnp.where(varies[:, None] & varies, covariance, 0)
  # Rounding may make an eigenvalue of zero slightly negative.
  values = jnp.maximum(jnp.linalg.eigvalsh(covariance), 0)
  largest, total = values[-1], values.sum()
  least = jnp.finfo(values.dtype).eps * largest
  part = values / jnp.where(total > 0, total, 1)
  entropy = -jnp.sum(jnp.where(part > 0, part * jnp.log(part), 0))
  return {
    'condition': jnp.where(
      largest > 0, largest / jnp.maximum(values[0], least), 1
    ),
    'rank': jnp.exp(entropy),
    'correlation': _correlation(covariance),
  }


def _correlation(covariance: jax.Array) -> jax.Array:
  variance = jnp.diag(covariance)
  varies = variance > 0
  scale = varies / jnp.sqrt(jnp.where(varies, variance, 1))
  off = covariance * scale[:, None] * scale * (1 - jnp.eye(len(variance)))
  count = varies.sum()
  pairs = jnp.maximum(count * (count - 1), 1)
  return jnp.sqrt(jnp.sum(off**2) / pairs)
