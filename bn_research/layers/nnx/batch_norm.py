"""Flax's nnx.BatchNorm, right where that is not."""

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research.layers import drop_in
from bn_research.layers.nnx.promotion import promote, value


class BatchNorm(nnx.BatchNorm):
  """Batch normalization with the arguments and variables of `nnx.BatchNorm`.

    y = (x - E x) / √(Var x + ε) · scale + bias

  In training the mean and the biased variance are those of the batch, and the
  running ones become old · momentum + new · (1 - momentum). Over a tuple of
  axes, `num_features` is the product of their sizes. See `layers.nnx` for what
  differs from Flax.

  Source: Ioffe and Szegedy (2015), Algorithm 1.
  """

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
    use_running = self._use_running(use_running_average)
    old = self.mean[...], self.var[...]
    x, promoted, (scale, bias), dtype = promote(
      self, x, old, (value(self.scale), value(self.bias))
    )
    normalization = drop_in.batch_norm(self, x.ndim)
    features = drop_in.axes(self.axis, x.ndim)
    known = promoted if use_running else old
    y, state = drop_in.apply(
      normalization,
      x,
      drop_in.running(normalization, x, features, *known),
      scale=scale,
      bias=bias,
      features=features,
      dtype=dtype,
      use_running=use_running,
      update=not use_running,
      mask=mask,
    )
    if not use_running:
      for variable, was, now in zip(
        (self.mean, self.var), old, (state.mean, state.var), strict=True
      ):
        variable.set_value(now.reshape(was.shape).astype(was.dtype))
    return y

  def _use_running(self, argument: bool | None) -> bool:
    given = self.use_running_average if argument is None else argument
    if given is None:
      raise ValueError(
        'No `use_running_average` argument was provided; give it to the layer '
        'or to the call, or set it by model.train(), model.eval() or nnx.view.'
      )
    return bool(given)
