"""Normalizations of weights, for comparison with those of activations."""

import jax
import jax.numpy as jnp

from bn_research.norms.maps.standardize import Standardize
from bn_research.norms.normalization import Normalization
from bn_research.norms.scopes import Batch
from bn_research.norms.statistics.moments import wide


def weight_standardization(
  kernel: jax.Array, gain: jax.Array | None = None, epsilon: float = 1e-5
) -> jax.Array:
  """Standardizes a kernel: for each output, over all inputs.

    w = (v - E v) / √(Var v + ε) · gain

  Args:
    kernel: v, the kernel (..., inputs, outputs) of a dense layer or a
      convolution, floating.
    gain: None for 1, or an array (outputs,).
    epsilon: ε, added to the variance, in squared units of the weights.

  Returns:
    An array of the shape and dtype of `kernel`.

  Source: Qiao et al. (2019), equation 5.
  """
  # The inputs of a kernel play the role of the rows of a batch, and the outputs
  # play the role of the features. The batch scope thus fits a kernel.
  y, _ = Normalization(Batch(), Standardize(epsilon=epsilon)).apply(
    kernel, scale=gain
  )
  return y


def weight_norm(
  direction: jax.Array, length: jax.Array, epsilon: float = 1e-12
) -> jax.Array:
  """Returns the kernel of a given direction and length, for each output.

    w = length · v / √(‖v‖² + ε)

  The paper combines weight normalization with `mean_only_batch_norm` after the
  layer.

  Args:
    direction: v, (..., inputs, outputs), floating.
    length: The norm of w for each output, (outputs,).
    epsilon: ε, added to the squared norm.

  Returns:
    The kernel w, of the shape and dtype of `direction`.

  Source: Salimans and Kingma (2016), equation 2.
  """
  # With ε under the root, a direction of zero has a finite gradient.
  axes = tuple(range(direction.ndim - 1))
  v = wide(direction)
  squares = jnp.sum(v * v, axes, keepdims=True)
  kernel = v * jax.lax.rsqrt(squares + epsilon) * length
  return kernel.astype(direction.dtype)
