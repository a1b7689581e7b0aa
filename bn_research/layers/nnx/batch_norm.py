"""The layer `nnx.BatchNorm` of Flax, with stable and masked statistics."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from bn_research.layers import calls, flax_words
from bn_research.layers.nnx.attributes import TakesArrays
from bn_research.layers.nnx.promotion import promote


class BatchNorm(TakesArrays, nnx.BatchNorm):
  """Batch normalization with the arguments and variables of `nnx.BatchNorm`.

    y = (x - E x) / √(Var x + ε) · scale + bias

  In training, the mean and the biased variance of the batch normalize, and the
  running statistics become old · momentum + new · (1 - momentum). At inference,
  the running statistics normalize. If `axis` is a tuple, `num_features` is the
  product of the sizes of the axes. Unlike in Flax, the variance is stable,
  masked activations give 0, and a batch with all examples masked, or with
  moments that are not finite, leaves the running statistics unchanged.

  Source: Ioffe and Szegedy (2015), Algorithm 1.
  """

  @functools.wraps(nnx.BatchNorm.__init__)  # type: ignore[misc]
  def __init__(self, *args, **options):
    """Initializes the variables of Flax, and checks the options.

    Args:
      *args: The arguments of `nnx.BatchNorm`.
      **options: The options of `nnx.BatchNorm`.

    Raises:
      ValueError: If an option is out of range.
    """
    super().__init__(*args, **options)
    if self.axis == -1:
      # The call fills the cache, and raises the errors of wrong options early.
      # A different `axis` can be checked only with activations.
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
        attribute of the same name.
      mask: None, or booleans that broadcast against `x`. Activations with False
        take no part, may hold any value, and give 0.

    Returns:
      An array of the shape of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If neither the layer nor the call has `use_running_average`,
        if shapes do not fit, or in training if `x` has no elements.
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
    # An update starts from the stored statistics, because promoted statistics
    # may be rounded.
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


def require_no_own_code(layer: nnx.BatchNorm) -> None:
  """Checks that a `Norm` in place of a layer loses no code of the user.

  Args:
    layer: A `BatchNorm` of this package, of Flax, or of the user.

  Raises:
    ValueError: If the class has its own `__call__`, or if the layer has its own
      `promote_dtype`.
  """
  kind = type(layer)
  if kind.__call__ not in (nnx.BatchNorm.__call__, BatchNorm.__call__):
    raise ValueError(
      f'{kind.__name__} is a subclass of BatchNorm with its own __call__, '
      f'which a Norm would lose; make {kind.__name__} a subclass of '
      'bn_research.layers.nnx.Norm, or leave the layer as it is.'
    )
  if layer.promote_dtype is not dtypes.promote_dtype:
    raise ValueError(
      'the BatchNorm has its own promote_dtype, which a Norm would lose; give '
      'the layer the promote_dtype of Flax, or leave the layer as it is.'
    )
