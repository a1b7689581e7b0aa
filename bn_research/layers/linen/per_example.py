"""The linen layers of Flax that normalize each example separately."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from bn_research.layers import flax_words
from bn_research.layers.linen.parameters import normalize


class LayerNorm(nn.LayerNorm):
  """Layer normalization with the arguments and variables of `linen.LayerNorm`.

    y = (x - E x) / √(Var x + ε) · scale + bias

  E x and Var x are moments of an example over `reduction_axes`. Unlike in Flax,
  the variance is stable, and masked activations give 0.

  Source: Ba et al. (2016), equation 3.
  """

  @nn.compact
  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalizes over `reduction_axes`.

    Args:
      x: Activations, floating.
      mask: None, or booleans that broadcast against `x`. Activations with False
        take no part, may hold any value, and give 0.

    Returns:
      An array of the shape of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If shapes do not fit.
    """
    x = jnp.asarray(x)
    norm, features = flax_words.layer_norm(self, x.ndim)
    return normalize(self, norm, x, features=features, mask=mask)[0]


class RMSNorm(nn.RMSNorm):
  """Root mean square normalization, with the arguments of `linen.RMSNorm`.

    y = x / √(E x² + ε) · scale

  E x² is the mean square of an example over `reduction_axes`. Unlike in Flax,
  masked activations give 0.

  Source: Zhang and Sennrich (2019), equation 4.
  """

  @nn.compact
  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalizes over `reduction_axes`.

    Args:
      x: Activations, floating.
      mask: None, or booleans that broadcast against `x`. Activations with False
        take no part, may hold any value, and give 0.

    Returns:
      An array of the shape of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If shapes do not fit.
    """
    x = jnp.asarray(x)
    norm, features = flax_words.rms_norm(self, x.ndim)
    return normalize(self, norm, x, features=features, mask=mask)[0]


class GroupNorm(nn.GroupNorm):
  """Group normalization with the arguments and variables of `linen.GroupNorm`.

    y = (x - E x) / √(Var x + ε) · scale + bias

  E x and Var x are moments of a group of channels of an example, over all
  positions. Unlike in Flax, the variance is stable, masked activations give 0,
  and a mask may have size 1 along the channels.

  Source: Wu and He (2018), equation 7.
  """

  @nn.compact
  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalizes groups of channels over positions.

    Args:
      x: Activations, floating.
      mask: None, or booleans that broadcast against `x`. Activations with False
        take no part, may hold any value, and give 0.

    Returns:
      An array of the shape of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If shapes do not fit, or groups do not divide the channels.
    """
    x = jnp.asarray(x)
    groups = self.num_groups, self.group_size
    norm, features = flax_words.group_norm(self, x.ndim, *groups)
    return normalize(self, norm, x, features=features, mask=mask)[0]


class InstanceNorm(nn.InstanceNorm):
  """Instance normalization, with the arguments of `linen.InstanceNorm`.

    y = (x - E x) / √(Var x + ε) · scale + bias

  E x and Var x are moments of a channel of an example, over all positions.
  Unlike in Flax, the variance is stable, and masked activations give 0.

  Source: Ulyanov et al. (2016), equation 4.
  """

  @nn.compact
  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalizes each channel over the positions of an example.

    Args:
      x: Activations, floating.
      mask: None, or booleans that broadcast against `x`. Activations with False
        take no part, may hold any value, and give 0.

    Returns:
      An array of the shape of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If shapes do not fit, or `feature_axes` has the first axis.
    """
    x = jnp.asarray(x)
    norm, features = flax_words.instance_norm(self, x.ndim)
    return normalize(self, norm, x, features=features, mask=mask)[0]
