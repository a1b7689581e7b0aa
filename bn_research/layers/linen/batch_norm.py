"""Flax's linen.BatchNorm, right where that is not."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from bn_research.layers import calls, flax_words
from bn_research.layers.linen.parameters import normalize


class BatchNorm(nn.BatchNorm):
  """Batch normalization with the arguments and variables of `linen.BatchNorm`.

    y = (x - E x) / √(Var x + ε) · scale + bias

  In training the mean and the biased variance are those of the batch, and the
  running ones become old · momentum + new · (1 - momentum). See `layers.linen`
  for what differs from Flax.

  Source: Ioffe and Szegedy (2015), Algorithm 1.
  """

  @nn.compact
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
      use_running_average: Whether running statistics normalize; exactly one of
        this and the attribute must be given.
      mask: None, or broadcastable against `x`: where False, `x` takes no part,
        may hold anything, and the result is 0.

    Returns:
      An array of the shape of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If `use_running_average` is given twice or not at all, or
        shapes do not fit.
      ModifyScopeVariableError: In training, if 'batch_stats' is not mutable.
    """
    use_running = bool(
      nn.merge_param(
        'use_running_average', self.use_running_average, use_running_average
      )
    )
    x = jnp.asarray(x)
    normalization, axes = flax_words.batch_norm(self, x.ndim)
    mean, var = self._variables(tuple(x.shape[a] for a in axes))
    update = not (use_running or self.is_initializing())
    known = mean.value, var.value
    if update:
      # An update that the stored type cannot hold must be skipped, so that the
      # state has this type before it moves.
      dtype = self._type_of_statistics(x)
      known = known[0].astype(dtype), known[1].astype(dtype)
    y, state = normalize(
      self,
      normalization,
      x,
      calls.running(x, axes, *known),
      features=axes,
      use_running=use_running,
      update=update,
      mask=mask,
    )
    if update:
      mean.value, var.value = state.mean, state.var
    return y

  def _variables(self, shape: tuple[int, ...]):
    is_wide = self.force_float32_reductions
    dtype = jnp.float32 if is_wide else self.param_dtype
    return (
      self.variable('batch_stats', 'mean', jnp.zeros, shape, dtype),
      self.variable('batch_stats', 'var', jnp.ones, shape, dtype),
    )

  def _type_of_statistics(self, x: jax.Array):
    """The type in which Flax leaves running statistics after an update."""
    least = jnp.float32 if self.force_float32_reductions else self.param_dtype
    return jnp.promote_types(self.dtype or x.dtype, least)
