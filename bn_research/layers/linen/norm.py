"""Any Normalization as a linen module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from flax.typing import Dtype, Initializer

from bn_research.layers import calls
from bn_research.layers.linen.parameters import parameter
from bn_research.norms import Normalizer


class Norm(nn.Module):
  """Any Normalization, with the learned scale and bias it calls for.

  What it remembers is in the collection 'batch_stats': a variable for each
  field of its state, `mean` and `var` among them; or one variable, `state`, for
  that of several. What it learns beside scale and bias is in 'params', as
  `learned`.

  Attributes:
    normalization: The normalization; pure, see `bn_research.norms`.
    use_running_average: Whether the population's moments normalize; exactly one
      of this and the call argument must be given. Without effect where nothing
      is remembered.
    use_scale: Whether there is a learned scale; None for where the map takes a
      scale away, so that there is something to give back.
    use_bias: Whether there is a learned bias.
    scale_init: Initializer of the scale.
    bias_init: Initializer of the bias.
    dtype: Type of the result; None for what activations, scale and bias promote
      to.
    param_dtype: Type of scale and bias.
  """

  normalization: Normalizer
  use_running_average: bool | None = None
  use_scale: bool | None = None
  use_bias: bool = True
  scale_init: Initializer = nn.initializers.ones
  bias_init: Initializer = nn.initializers.zeros
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32

  @nn.compact
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
      use_running_average: See the attribute.
      update: Whether the statistics move; None for exactly when training.
      mask: None, or boolean and broadcastable against `x`.

    Returns:
      An array of the shape of `x`.
    """
    x = jnp.asarray(x)
    norm = self.normalization
    use_running = norm.remembers and self._use_running(use_running_average)
    if update is None:
      update = not use_running
    if self.is_initializing():
      norm, update = calls.on_one_device(norm), False
    wide = jnp.promote_types(self.param_dtype, jnp.float32)
    state, variables = self._remembered(norm.init(x.shape[-1], wide))
    learned = norm.learned(x.shape[-1], self.param_dtype)
    if jax.tree.leaves(learned):
      learned = self.param('learned', lambda key: learned)
    last = (x.ndim - 1,)
    use_scale = norm.scales if self.use_scale is None else self.use_scale
    scale = parameter(self, 'scale', x, last) if use_scale else None
    bias = parameter(self, 'bias', x, last) if self.use_bias else None
    y, state = calls.apply(
      norm,
      x,
      state,
      scale=scale,
      bias=bias,
      features=last,
      dtype=dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype),
      learned=learned,
      use_running=use_running,
      update=update,
      mask=mask,
    )
    if update:
      for name, variable in variables.items():
        variable.value = state if name == 'state' else getattr(state, name)
    return y

  def _use_running(self, argument: bool | None) -> bool:
    name = 'use_running_average'
    return bool(nn.merge_param(name, self.use_running_average, argument))

  def _remembered(self, initial: Any) -> tuple[Any, dict[str, nn.Variable]]:
    """Returns the state, and the variables that hold its fields."""
    if initial == ():
      return initial, {}
    if not hasattr(initial, '_asdict'):
      whole = self.variable('batch_stats', 'state', lambda: initial)
      return whole.value, {'state': whole}
    variables = {
      name: self.variable('batch_stats', name, lambda leaf: leaf, leaf)
      for name, leaf in initial._asdict().items()
    }
    values = {name: variable.value for name, variable in variables.items()}
    return initial._replace(**values), variables
