"""Flax's linen layers that normalize an example by itself."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from bn_research.layers import flax_words
from bn_research.layers.linen.parameters import normalize


class LayerNorm(nn.LayerNorm):
  """Layer normalization with the arguments and variables of `linen.LayerNorm`.

  See `layers.linen` for what differs from Flax.

  Source: Ba et al. (2016), equation 3.
  """

  @nn.compact
  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalizes over `reduction_axes`.

    Args:
      x: Activations, floating.
      mask: None, or broadcastable against `x`: where False, `x` takes no part,
        may hold anything, and the result is 0.

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
  """Root mean square normalization as in `linen.RMSNorm`: y = x / √(E x² + ε).

  See `layers.linen` for what differs from Flax.

  Source: Zhang and Sennrich (2019), equation 4.
  """

  @nn.compact
  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalizes over `reduction_axes`; see `LayerNorm`."""
    x = jnp.asarray(x)
    norm, features = flax_words.rms_norm(self, x.ndim)
    return normalize(self, norm, x, features=features, mask=mask)[0]


class GroupNorm(nn.GroupNorm):
  """Group normalization with the arguments and variables of `linen.GroupNorm`.

  A mask need not have the channels. See `layers.linen` for what differs from
  Flax.

  Source: Wu and He (2018), equation 7.
  """

  @nn.compact
  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalizes groups of channels over positions; see `LayerNorm`."""
    x = jnp.asarray(x)
    groups = self.num_groups, self.group_size
    norm, features = flax_words.group_norm(self, x.ndim, *groups)
    return normalize(self, norm, x, features=features, mask=mask)[0]


class InstanceNorm(nn.InstanceNorm):
  """Instance normalization as in `linen.InstanceNorm`.

  See `layers.linen` for what differs from Flax.

  Source: Ulyanov et al. (2016), equation 4.
  """

  @nn.compact
  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalizes each channel over its positions; see `LayerNorm`."""
    x = jnp.asarray(x)
    norm, features = flax_words.instance_norm(self, x.ndim)
    return normalize(self, norm, x, features=features, mask=mask)[0]
