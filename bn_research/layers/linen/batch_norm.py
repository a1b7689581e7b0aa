"""The layer `linen.BatchNorm` of Flax, with stable and masked statistics."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from bn_research.layers import calls, flax_words
from bn_research.layers.linen.parameters import normalize
from bn_research.norms import checks


class BatchNorm(nn.BatchNorm):
  """Batch normalization with the arguments and variables of `linen.BatchNorm`.

    y = (x - E x) / √(Var x + ε) · scale + bias

  In training, the mean and the biased variance of the batch normalize, and the
  running statistics become old · momentum + new · (1 - momentum). At inference,
  the running statistics normalize. Unlike in Flax, the variance is stable,
  masked activations give 0, and a batch with all examples masked, or with
  moments that are not finite, leaves the running statistics unchanged.

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
      use_running_average: Whether running statistics normalize. Give either
        this argument or the attribute, not both.
      mask: None, or booleans that broadcast against `x`. Activations with False
        take no part, may hold any value, and give 0.

    Returns:
      An array of the shape of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If `use_running_average` is given twice or not at all, if
        shapes do not fit, or in training if `x` has no elements.
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
      # The cast comes before the update, because the update must be skipped if
      # the stored type cannot hold the new statistics.
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
    # Names, types and initial values are those of Flax, for old checkpoints.
    is_wide = self.force_float32_reductions
    dtype = jnp.float32 if is_wide else self.param_dtype
    return (
      self.variable('batch_stats', 'mean', jnp.zeros, shape, dtype),
      self.variable('batch_stats', 'var', jnp.ones, shape, dtype),
    )

  def _type_of_statistics(self, x: jax.Array):
    """Returns the type that Flax gives the running statistics in an update."""
    least = jnp.float32 if self.force_float32_reductions else self.param_dtype
    return checks.wider(self.dtype or x.dtype, least)
