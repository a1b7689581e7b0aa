"""Any Normalization as an nnx module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer

from bn_research.layers import drop_in
from bn_research.layers.nnx.promotion import value
from bn_research.norms import Normalization


def _is_variable(node) -> bool:
  return isinstance(node, nnx.Variable)


class Norm(nnx.Module):
  """Any Normalization, with the learned scale and bias it calls for.

  Attributes:
    normalization: The normalization, or what has its calls; pure, see
      `bn_research.norms`.
    statistics: Its state, each array an `nnx.BatchStat`.
    learned: What it learns beside scale and bias, each array an `nnx.Param`;
      commonly nothing.
    scale: `nnx.Param` (num_features,), or None.
    bias: `nnx.Param` (num_features,), or None.
    use_running_average: Default of the call argument; set by `model.train()`
      and `model.eval()`.
    dtype: Type of the result, or None.
    param_dtype: Type of scale and bias.
  """

  def __init__(
    self,
    normalization: Normalization,
    num_features: int,
    *,
    use_running_average: bool = False,
    use_scale: bool | None = None,
    use_bias: bool = True,
    scale_init: Initializer = nnx.initializers.ones,
    bias_init: Initializer = nnx.initializers.zeros,
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Initializes the state and the parameters.

    Args:
      normalization: The normalization.
      num_features: Size of the last axis of the activations.
      use_running_average: Whether the population's moments normalize.
      use_scale: Whether there is a learned scale; None for where the map takes
        a scale away, so that there is something to give back.
      use_bias: Whether there is a learned bias.
      scale_init: Initializer of the scale.
      bias_init: Initializer of the bias.
      dtype: Type of the result; None for what activations, scale, bias and, as
        in `nnx.BatchNorm`, statistics promote to.
      param_dtype: Type of scale and bias.
      rngs: Keys for the initializers.
    """
    if use_scale is None:
      use_scale = normalization.scales
    shape = (num_features,)
    self.normalization = normalization
    self.num_features = num_features
    self.use_running_average = use_running_average
    self.dtype = dtype
    self.param_dtype = param_dtype
    self.scale = nnx.data(
      nnx.Param(scale_init(rngs.params(), shape, param_dtype))
      if use_scale
      else None
    )
    self.bias = nnx.data(
      nnx.Param(bias_init(rngs.params(), shape, param_dtype))
      if use_bias
      else None
    )
    state = normalization.init(num_features)
    self.statistics = nnx.data(jax.tree.map(nnx.BatchStat, state))
    learned = normalization.learned(num_features)
    self.learned = nnx.data(jax.tree.map(nnx.Param, learned))

  def __call__(
    self,
    x: jax.Array,
    use_running_average: bool | None = None,
    *,
    update: bool | None = None,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Normalizes `x` (batch, ..., num_features), and keeps the statistics.

    Args:
      x: Activations, floating.
      use_running_average: None for the module's own. Without effect where
        nothing is remembered.
      update: Whether the statistics move; None for exactly when training.
      mask: None, or boolean and broadcastable against `x`.

    Returns:
      An array of the shape of `x`.

    Raises:
      ValueError: If the last axis is not of `num_features`.
    """
    x = jnp.asarray(x)
    if x.shape[-1:] != (self.num_features,):
      raise drop_in.misfit(x, (x.ndim - 1,))
    if use_running_average is None:
      use_running_average = self.use_running_average
    if update is None:
      update = not use_running_average
    state, learned = jax.tree.map(
      lambda variable: variable[...],
      (self.statistics, self.learned),
      is_leaf=_is_variable,
    )
    scale, bias = value(self.scale), value(self.bias)
    types = x, scale, bias, *jax.tree.leaves(state)
    y, new = drop_in.apply(
      self.normalization,
      x,
      state,
      scale=scale,
      bias=bias,
      features=(x.ndim - 1,),
      dtype=dtypes.canonicalize_dtype(*types, dtype=self.dtype),
      learned=learned,
      use_running=use_running_average and self.normalization.remembers,
      update=update,
      mask=mask,
    )
    if update:
      jax.tree.map(
        lambda variable, value: variable.set_value(value),
        self.statistics,
        new,
        is_leaf=_is_variable,
      )
    return y

  def set_view(self, use_running_average: bool | None = None) -> None:
    """Sets what `nnx.view` asks for.

    Args:
      use_running_average: None for no change.
    """
    if use_running_average is not None:
      self.use_running_average = use_running_average
