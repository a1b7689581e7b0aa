"""An nnx module for any normalization."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer

from bn_research.layers import calls, normalizers
from bn_research.layers.nnx.promotion import array_of, is_variable, value
from bn_research.norms import Normalizer, checks


def initial_statistics(
  norm: 'Norm', normalization: Normalizer, leading: tuple[int, ...] = ()
) -> Any:
  """Returns the state of a layer before the first batch.

  Args:
    norm: The layer, which has `num_features` and `param_dtype`.
    normalization: The normalization with the state.
    leading: The sizes of leading axes along which models are stacked.

  Returns:
    The state, with arrays of `param_dtype`, but float32 at least.
  """
  wide = checks.wider(norm.param_dtype)
  return _stacked(normalization.init(norm.num_features, wide), leading)


def _stacked(tree: Any, leading: tuple[int, ...]) -> Any:
  return jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, (*leading, *leaf.shape)), tree
  )


class Norm(nnx.Module):
  """Any normalization as a layer, with a learned scale and bias.

    y = Norm(x, X) · scale + bias

  Attributes:
    normalization: A `norms.Normalization`, or a combination of normalizations.
      A new value takes effect at the next call; `set_normalization` also makes
      new statistics.
    statistics: The state of the normalization, each array an `nnx.BatchStat`.
    learned: Further parameters of the normalization, each array an `nnx.Param`.
      Most normalizations have no further parameters.
    scale: `nnx.Param` (num_features,), or None.
    bias: `nnx.Param` (num_features,), or None.
    use_running_average: Default of the call argument, which `model.train()` and
      `model.eval()` change.
    dtype: Type of the result, or None.
    param_dtype: Type of scale and bias.
  """

  def __init__(
    self,
    normalization: Normalizer,
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
      normalization: A `norms.Normalization`, or a combination.
      num_features: Size of the last axis of the activations.
      use_running_average: Whether the moments of the population normalize.
      use_scale: Whether the layer learns a scale. None means: exactly if the
        map takes a scale away, which a learned scale can give back.
      use_bias: Whether the layer learns a bias.
      scale_init: Initializer of the scale.
      bias_init: Initializer of the bias.
      dtype: Type of the result; None for the common type of activations, scale,
        bias and, as in `nnx.BatchNorm`, statistics.
      param_dtype: Type of scale and bias. The statistics have this type too,
        but float32 at least.
      rngs: Keys for the initializers.

    Raises:
      TypeError: If `normalization` has not the methods of a normalization.
      ValueError: If groups of channels do not fit `num_features`.
    """
    normalizers.require(normalization)
    if use_scale is None:
      use_scale = normalization.scales
    shape = (num_features,)
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
    self.set_normalization(normalization)

  @property
  def normalization(self) -> Normalizer:
    """The normalization, with the present values of arrays."""
    if not self._options:
      return self._structure
    arrays = [option[...] for option in self._options]
    return jax.tree.unflatten(self._structure, arrays)

  def __setattr__(self, name: str, value: Any) -> None:
    if name == 'normalization':
      self._hold(value)
    else:
      super().__setattr__(name, value)

  def _hold(self, normalization: Normalizer) -> None:
    normalizers.require(normalization)
    normalizers.require_features(normalization, self.num_features)
    # Arrays of a normalization, such as a traced momentum, are variables of the
    # layer: nnx can update a variable, but not the field of a dataclass. A
    # normalization without arrays stays a static part of the graph definition.
    leaves, structure = jax.tree.flatten(normalization)
    has_arrays = any(map(checks.is_array, leaves))
    self._structure = nnx.static(structure if has_arrays else normalization)
    variables = map(nnx.Variable, map(jnp.asarray, leaves))
    self._options = nnx.data(tuple(variables) if has_arrays else ())

  def set_normalization(
    self, normalization: Normalizer, leading: tuple[int, ...] = ()
  ) -> None:
    """Changes the normalization, and resets statistics and learned arrays.

    Args:
      normalization: The new normalization.
      leading: The sizes of leading axes along which models are stacked.

    Raises:
      TypeError: If `normalization` has not the methods of a normalization.
      ValueError: If groups of channels do not fit `num_features`.
    """
    self._hold(normalization)
    state = initial_statistics(self, normalization, leading)
    self.statistics = nnx.data(jax.tree.map(nnx.BatchStat, state))
    learned = normalization.learned(self.num_features, self.param_dtype)
    learned = _stacked(learned, leading)
    self.learned = nnx.data(jax.tree.map(nnx.Param, learned))

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
      x: Activations (batch, ..., num_features), floating.
      use_running_average: Whether the moments of the population normalize; None
        for the attribute of the same name. A normalization without a population
        ignores the argument.
      update: Whether the statistics move; None means: exactly if the moments of
        the batch normalize.
      mask: None, or booleans that broadcast against `x`. Activations with False
        take no part, may hold any value, and give 0.

    Returns:
      An array of the shape of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the last axis has not the size `num_features`, or if a mask
        does not fit.
    """
    x, normalization = jnp.asarray(x), self.normalization
    if x.shape[-1:] != (self.num_features,):
      calls.raise_mismatch(x, (x.ndim - 1,))
    if use_running_average is None:
      use_running_average = self.use_running_average
    if update is None:
      update = not use_running_average
    state, learned = jax.tree.map(
      array_of, (self.statistics, self.learned), is_leaf=is_variable
    )
    scale, bias = value(self.scale), value(self.bias)
    # The types of the statistics count, as in `nnx.BatchNorm`.
    types = x, scale, bias, *jax.tree.leaves(state)
    y, new = calls.apply(
      normalization,
      x,
      state,
      scale=scale,
      bias=bias,
      features=(x.ndim - 1,),
      dtype=dtypes.canonicalize_dtype(*types, dtype=self.dtype),
      learned=learned,
      use_running=use_running_average and normalization.remembers,
      update=update,
      mask=mask,
    )
    if update:
      jax.tree.map(
        lambda variable, value: variable.set_value(value),
        self.statistics,
        new,
        is_leaf=is_variable,
      )
    return y

  def set_view(self, use_running_average: bool | None = None) -> None:
    """Sets the default of `use_running_average`; `nnx.view` calls this method.

    Args:
      use_running_average: The new value; None for no change.
    """
    if use_running_average is not None:
      self.use_running_average = use_running_average
