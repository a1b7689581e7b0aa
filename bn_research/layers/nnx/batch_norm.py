"""Flax's nnx.BatchNorm, right where that is not."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research.layers import calls, flax_words
from bn_research.layers.nnx.promotion import promote


class BatchNorm(nnx.BatchNorm):
  """Batch normalization with the arguments and variables of `nnx.BatchNorm`.

    y = (x - E x) / √(Var x + ε) · scale + bias

  In training the mean and the biased variance are those of the batch, and the
  running ones become old · momentum + new · (1 - momentum). Over a tuple of
  axes, `num_features` is the product of their sizes. See `layers.nnx` for what
  differs from Flax.

  Source: Ioffe and Szegedy (2015), Algorithm 1.
  """

  @functools.wraps(nnx.BatchNorm.__init__)  # type: ignore[misc]
  def __init__(self, *args, **options):
    """Initializes as Flax does; refuses options that are out of range."""
    super().__init__(*args, **options)
    if self.axis == -1:
      # Built here, the normalization is only looked up at the calls.
      flax_words.batch_norm(self, 2)

  def __call__(
    self,
    x: jax.Array,
    use_running_average: bool | None = None,
    *,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Normalizes `x`, and in training moves the running statistics.

    Args:
      x: Activations, floating.
      use_running_average: Whether running statistics normalize; None for the
        layer's own.
      mask: None, or broadcastable against `x`: where False, `x` takes no part,
        may hold anything, and the result is 0.

    Returns:
      An array of the shape of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If neither the layer nor the call says what normalizes, or
        shapes do not fit.
    """
    x = jnp.asarray(x)
    use_running = use_running_average
    if use_running is None:
      use_running = self.use_running_average
    if use_running is None:
      raise ValueError(
        'No `use_running_average` argument was provided; give it to the layer '
        'or to the call, or set it by model.train(), model.eval() or nnx.view.'
      )
    stored = self.mean[...], self.var[...]
    parameters = (
      None if self.scale is None else self.scale[...],
      None if self.bias is None else self.bias[...],
    )
    x, promoted, (scale, bias), dtype = promote(self, x, stored, parameters)
    normalization, features = flax_words.batch_norm(self, x.ndim)
    known = promoted if use_running else stored
    y, state = calls.apply(
      normalization,
      x,
      calls.running(x, features, *known),
      scale=scale,
      bias=bias,
      features=features,
      dtype=dtype,
      use_running=bool(use_running),
      update=not use_running,
      mask=mask,
    )
    if not use_running:
      self.mean.set_value(state.mean.reshape(stored[0].shape))
      self.var.set_value(state.var.reshape(stored[1].shape))
    return y
