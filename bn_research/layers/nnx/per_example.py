"""Flax's nnx layers that normalize an example by itself."""

import functools
import inspect

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research.layers import calls, flax_words
from bn_research.layers.nnx.promotion import promote, value
from bn_research.norms import checks


class LayerNorm(nnx.LayerNorm):
  """Layer normalization with the arguments and variables of `nnx.LayerNorm`.

  Over several `feature_axes`, `num_features` is the product of their sizes. See
  `layers.nnx` for what differs from Flax.

  Source: Ba et al. (2016), equation 3.
  """

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
    return _normalize(self, flax_words.layer_norm, x, mask)


class RMSNorm(nnx.RMSNorm):
  """Root mean square normalization as in `nnx.RMSNorm`: y = x / √(E x² + ε).

  See `layers.nnx` for what differs from Flax.

  Source: Zhang and Sennrich (2019), equation 4.
  """

  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Normalizes over `reduction_axes`; see `LayerNorm`."""
    return _normalize(self, flax_words.rms_norm, x, mask)


class GroupNorm(nnx.GroupNorm):
  """Group normalization with the arguments and variables of `nnx.GroupNorm`.

  Any `reduction_axes` with the last among them are right; Flax's result is
  another array where axis 1 is none of them. A mask need not have the channels.
  See `layers.nnx` for what else differs.

  Source: Wu and He (2018), equation 7.
  """

  @functools.wraps(nnx.GroupNorm.__init__)  # type: ignore[misc]
  def __init__(self, *args, **options):
    """Initializes as Flax does; raises where channels do not divide."""
    signature = inspect.signature(nnx.GroupNorm.__init__)
    given = signature.bind(self, *args, **options)
    given.apply_defaults()
    groups = {
      name: given.arguments[name]
      for name in ('num_groups', 'group_size')
      if given.arguments[name] is not None
    }
    if len(groups) == 1:  # or Flax raises
      checks.divisor(given.arguments['num_features'], **groups)
    super().__init__(*args, **options)

  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalizes groups of channels over positions; see `LayerNorm`."""
    read = functools.partial(
      flax_words.group_norm, num_groups=self.num_groups, group_size=None
    )
    return _normalize(self, read, x, mask)


class InstanceNorm(nnx.InstanceNorm):
  """Instance normalization as in `nnx.InstanceNorm`.

  See `layers.nnx` for what differs from Flax.

  Source: Ulyanov et al. (2016), equation 4.
  """

  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalizes each channel over its positions; see `LayerNorm`."""
    return _normalize(self, flax_words.instance_norm, x, mask)


def _normalize(layer, read, x, mask) -> jax.Array:
  """Normalizes by what `read` makes of the attributes of the layer."""
  x = jnp.asarray(x)
  normalization, features = read(layer, x.ndim)
  bias = getattr(layer, 'bias', None)  # RMSNorm has none
  parameters = (value(layer.scale), value(bias))
  x, _, (scale, bias), dtype = promote(layer, x, (), parameters)
  y, _ = calls.apply(
    normalization,
    x,
    scale=scale,
    bias=bias,
    features=features,
    dtype=dtype,
    mask=mask,
  )
  return y
