"""A linen module for any normalization."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from flax.typing import Dtype, Initializer

from bn_research.layers import calls, normalizers
from bn_research.layers.linen.parameters import parameter
from bn_research.norms import Normalizer, checks


class Norm(nn.Module):
  """Any normalization as a layer, with a learned scale and bias.

    y = Norm(x, X) · scale + bias

  The collection 'batch_stats' holds the state, with a variable for each field,
  such as `mean` and `var`. The state of a combination is a single variable,
  `state`. The collection 'params' holds `scale`, `bias` and, as `learned`, all
  further parameters of the normalization.

  Attributes:
    normalization: A `norms.Normalization`, or a combination of normalizations.
    use_running_average: Whether the moments of the population normalize. Give
      either this attribute or the argument of the call, not both. A
      normalization without a population needs neither.
    use_scale: Whether the layer learns a scale. None means: exactly if the map
      takes a scale away, which a learned scale can give back.
    use_bias: Whether the layer learns a bias.
    scale_init: Initializer of the scale.
    bias_init: Initializer of the bias.
    dtype: Type of the result; None for the common type of activations, scale
      and bias.
    param_dtype: Type of scale and bias. The statistics have this type too, but
      float32 at least.
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
    """Normalizes activations, and in training moves the statistics.

    Args:
      x: Activations (batch, ..., features), floating.
      use_running_average: Whether the moments of the population normalize;
        None if the attribute of the same name is given.
      update: Whether the statistics move; None means: exactly if the moments of
        the batch normalize.
      mask: None, or booleans that broadcast against `x`. Activations with False
        take no part, may hold any value, and give 0.

    Returns:
      An array of the shape of `x`.

    Raises:
      TypeError: If `x` is not floating, or if `normalization` has not the
        methods of a normalization.
      ValueError: If `use_running_average` is given twice or not at all, or if
        shapes do not fit.
      ModifyScopeVariableError: In training, if 'batch_stats' is not mutable.
    """
    x = jnp.asarray(x)
    norm = self.normalization
    normalizers.require(norm)
    # The check of the two flags comes last: a normalization without statistics
    # must work without a flag.
    use_running = norm.remembers and self._use_running(use_running_average)
    if update is None:
      update = not use_running
    if self.is_initializing():
      # A sample input must not move statistics, and no axis name is bound.
      norm, update = calls.on_one_device(norm), False
    wide = checks.wider(self.param_dtype)
    state, variables = self._remembered(norm.init(x.shape[-1], wide))
    learned = norm.learned(x.shape[-1], self.param_dtype)
    # Without an empty entry, the parameters have the tree of a layer of Flax.
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
    """Returns the state, and the variables that hold the fields of the state.

    Variables with the names `mean` and `var` can be exchanged with Flax's
    `BatchNorm`.
    """
    if initial == ():
      return initial, {}
    if not hasattr(initial, '_asdict'):
      # The state of a combination is a tuple without names.
      whole = self.variable('batch_stats', 'state', lambda: initial)
      return whole.value, {'state': whole}
    variables = {
      name: self.variable('batch_stats', name, lambda leaf: leaf, leaf)
      for name, leaf in initial._asdict().items()
    }
    values = {name: variable.value for name, variable in variables.items()}
    # A restored checkpoint has dicts in place of named tuples in the fields.
    return checks.restored(values, initial), variables
