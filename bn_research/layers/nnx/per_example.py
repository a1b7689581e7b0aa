"""The nnx layers of Flax that normalize each example separately."""

import functools
import inspect

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research.layers import calls, flax_words
from bn_research.layers.nnx.attributes import TakesArrays
from bn_research.layers.nnx.promotion import promote, value
from bn_research.norms import checks


class LayerNorm(TakesArrays, nnx.LayerNorm):
  """Layer normalization with the arguments and variables of `nnx.LayerNorm`.

    y = (x - E x) / √(Var x + ε) · scale + bias

  E x and Var x are moments of an example over `reduction_axes`. With several
  `feature_axes`, `num_features` is the product of the sizes of the axes. Unlike
  in Flax, the variance is stable, and masked activations give 0.

  Source: Ba et al. (2016), equation 3.
  """

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
    return _normalize(self, flax_words.layer_norm, x, mask)


class RMSNorm(TakesArrays, nnx.RMSNorm):
  """Root mean square normalization, with the arguments of `nnx.RMSNorm`.

    y = x / √(E x² + ε) · scale

  E x² is the mean square of an example over `reduction_axes`. Unlike in Flax,
  masked activations give 0.

  Source: Zhang and Sennrich (2019), equation 4.
  """

  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
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
    return _normalize(self, flax_words.rms_norm, x, mask)


class GroupNorm(TakesArrays, nnx.GroupNorm):
  """Group normalization with the arguments and variables of `nnx.GroupNorm`.

    y = (x - E x) / √(Var x + ε) · scale + bias

  E x and Var x are moments of a group of channels of an example, over all
  positions. Unlike in Flax, the variance is stable, masked activations give 0,
  and a mask may have size 1 along the channels. The result is right for any
  `reduction_axes` with the last axis; the result of Flax is wrong for
  `reduction_axes` without axis 1.

  Source: Wu and He (2018), equation 7.
  """

  @functools.wraps(nnx.GroupNorm.__init__)  # type: ignore[misc]
  def __init__(self, *args, **options):
    """Initializes the variables of Flax, and checks the groups.

    Args:
      *args: The arguments of `nnx.GroupNorm`.
      **options: The options of `nnx.GroupNorm`.

    Raises:
      ValueError: If the groups do not divide the channels.
    """
    signature = inspect.signature(nnx.GroupNorm.__init__)
    given = signature.bind(self, *args, **options)
    given.apply_defaults()
    groups = {
      name: given.arguments[name]
      for name in ('num_groups', 'group_size')
      if given.arguments[name] is not None
    }
    if len(groups) == 1:  # Flax raises an error for no number, and for two.
      checks.divisor(given.arguments['num_features'], **groups)
    super().__init__(*args, **options)

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
      ValueError: If shapes do not fit.
    """
    read = functools.partial(
      flax_words.group_norm, num_groups=self.num_groups, group_size=None
    )
    return _normalize(self, read, x, mask)


class InstanceNorm(TakesArrays, nnx.InstanceNorm):
  """Instance normalization, with the arguments of `nnx.InstanceNorm`.

    y = (x - E x) / √(Var x + ε) · scale + bias

  E x and Var x are moments of a channel of an example, over all positions.
  Unlike in Flax, the variance is stable, and masked activations give 0.

  Source: Ulyanov et al. (2016), equation 4.
  """

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
    return _normalize(self, flax_words.instance_norm, x, mask)


def _normalize(layer, read, x, mask) -> jax.Array:
  """Normalizes `x`, with the normalization that `read` makes of the layer."""
  x = jnp.asarray(x)
  normalization, features = read(layer, x.ndim)
  bias = getattr(layer, 'bias', None)  # RMSNorm has no bias.
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
