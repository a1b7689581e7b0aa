"""Methods related to normalization, for complete comparisons.

The classes have the methods `init`, `learned` and `apply` of a `Normalization`,
and can replace a `Normalization`. No choice of scope, map, population and
gradient gives these methods, because the result is not an affine function of
the activation for given moments.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bn_research.norms import checks
from bn_research.norms.maps.standardize import Standardize
from bn_research.norms.normalization import Normalization
from bn_research.norms.populations import Ema, Running
from bn_research.norms.pytrees import Node, Number, Schedule
from bn_research.norms.scopes import Batch, Example
from bn_research.norms.statistics.collectives import AxisNames
from bn_research.norms.statistics.moments import apply_mask, wide
from bn_research.norms.statistics.views import as_tuples

Learned = Mapping[str, jax.Array]

_FUNCTIONS = ('tanh', 'erf')


def _affine(y, x, mask, scale, bias, dtype) -> jax.Array:
  """Scales and shifts `y`, and casts to the type of the result."""
  y = y if scale is None else y * scale.astype(y.dtype)
  y = y if bias is None else y + bias.astype(y.dtype)
  return apply_mask(mask, y).astype(checks.result_type(x, dtype))


@dataclasses.dataclass(frozen=True)
class Squash(Node):
  """A sigmoid function instead of a normalization, without statistics.

    tanh    y = tanh(α x) · scale + bias
    erf     y = erf(α x + s) · scale + bias

  The layer learns one slope α, and for 'erf' one shift s with initial value 0.

  Attributes:
    function: 'tanh' or 'erf'.
    alpha: Initial value of α.

  Raises:
    ValueError: If an option is out of range.

  Source: Zhu et al. (2025), equation 1 (dynamic tanh); Chen et al. (2025)
  (dynamic erf).
  """

  function: str = 'tanh'
  alpha: Number = 0.5

  remembers = False
  scales = True

  def __post_init__(self):
    if self.function not in _FUNCTIONS:
      raise ValueError(
        f'function={self.function!r} must be one of {", ".join(_FUNCTIONS)}.'
      )
    checks.number('alpha', self.alpha, math.isfinite, 'finite')

  def init(self, num_features: int, dtype: Any = jnp.float32) -> tuple[()]:
    """Returns (), because nothing is remembered."""
    del num_features, dtype
    return ()

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> dict[str, jax.Array]:
    """Returns the slope, and for erf the shift, each of shape ()."""
    del num_features
    alpha = {'alpha': jnp.asarray(self.alpha, dtype)}
    if self.function == 'tanh':
      return alpha
    return {**alpha, 'shift': jnp.zeros((), dtype)}

  def apply(
    self,
    x: jax.Array,
    state: tuple[()] = (),
    *,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    learned: Learned,
    use_running: bool = False,
    update: bool = True,
    mask: jax.Array | None = None,
    dtype: Any = None,
  ) -> tuple[jax.Array, tuple[()]]:
    """Squashes `x`; for the arguments see `Normalization.apply`.

    `learned` holds the arrays from the method `learned`.
    """
    del update  # there is no state to update
    x, mask, scale, bias = checks.activations(x, mask, scale, bias)
    checks.no_running(use_running)
    z = apply_mask(mask, wide(x))
    z = z * learned['alpha'].astype(z.dtype)
    if self.function == 'tanh':
      return _affine(jnp.tanh(z), x, mask, scale, bias, dtype), state
    y = jax.scipy.special.erf(z + learned['shift'].astype(z.dtype))
    return _affine(y, x, mask, scale, bias, dtype), state


def dynamic_tanh(alpha: float = 0.5) -> Squash:
  """Dynamic tanh: y = tanh(α x), with a learned α.

  Args:
    alpha: Initial value of α.

  Returns:
    The replacement of a normalization.

  Raises:
    ValueError: If `alpha` is not finite.

  Source: Zhu et al. (2025), equation 1.
  """
  return Squash('tanh', alpha)


def dynamic_erf(alpha: float = 0.5) -> Squash:
  """Dynamic erf: y = erf(α x + s), with a learned α and a learned s.

  Args:
    alpha: Initial value of α. The initial value of s is 0.

  Returns:
    The replacement of a normalization.

  Raises:
    ValueError: If `alpha` is not finite.

  Source: Chen et al. (2025).
  """
  return Squash('erf', alpha)


@dataclasses.dataclass(frozen=True)
class EvoNormB0(Node):
  """EvoNorm-B0: a normalization and activation in one, with batch statistics.

    y = x / max(σ_batch, v x + σ_instance) · scale + bias

  The layer learns v, one number for each feature.

  Attributes:
    momentum: Weight of the old value in the running variance of the batch, in
      [0, 1).
    epsilon: ε, added to both variances, in squared units of the activations.
    axis_name: Names of the mesh axes to pool the batch over, under `shard_map`,
      `pmap` or `vmap`.

  Raises:
    ValueError: If an option is out of range.

  Source: Liu et al. (2020), Table 2.
  """

  momentum: Schedule = 0.99
  epsilon: Number = 1e-5
  axis_name: AxisNames = None

  remembers = True
  scales = True

  def __post_init__(self):
    checks.number('epsilon', self.epsilon, checks.is_non_negative)
    Ema(self.momentum)  # raises a ValueError for a momentum out of range
    object.__setattr__(self, 'axis_name', as_tuples(self.axis_name))

  @property
  def _batch(self) -> Normalization:
    return Normalization(
      Batch(axis_name=self.axis_name),
      Standardize(epsilon=self.epsilon),
      Ema(self.momentum),
    )

  def init(self, num_features: int, dtype: Any = jnp.float32) -> Any:
    """Returns the running statistics of the batch."""
    return self._batch.init(num_features, dtype)

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> dict[str, jax.Array]:
    """Returns `v` (num_features,), with initial value 1."""
    return {'v': jnp.ones(num_features, dtype)}

  def apply(
    self,
    x: jax.Array,
    state: Any = (),
    *,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    learned: Learned,
    use_running: bool = False,
    update: bool = True,
    mask: jax.Array | None = None,
    dtype: Any = None,
  ) -> tuple[jax.Array, Any]:
    """Normalizes and activates `x`; for arguments see `Normalization.apply`.

    `learned` holds the arrays from the method `learned`.
    """
    x, mask, scale, bias = checks.activations(x, mask, scale, bias)
    state = checks.state(state, x.shape[-1:], Running, self._batch.init)
    if x.size == 0 and not update:
      return jnp.zeros(x.shape, checks.result_type(x, dtype)), state
    moments = self._batch.measure(x, mask)
    # The running variance replaces the variance of the batch only. The variance
    # of the instance is the same in training and inference.
    variance = state.var if use_running else moments.variance
    instance = Normalization(
      Example('positions'), Standardize(epsilon=self.epsilon)
    ).measure(x, mask)
    # A hidden activation may be NaN, and the gradient at NaN is NaN even for a
    # cotangent of 0. The mask therefore comes before the arithmetic.
    z = apply_mask(mask, wide(x))
    variance = variance.astype(z.dtype)
    epsilon = checks.number_of_type(self.epsilon, z)
    v = learned['v'].astype(z.dtype)
    example = v * z + jnp.sqrt(instance.variance + epsilon)
    y = z / jnp.maximum(jnp.sqrt(variance + epsilon), example)
    state = self._batch.learn(state, moments) if update else state
    return _affine(y, x, mask, scale, bias, dtype), state


@dataclasses.dataclass(frozen=True)
class EvoNormS0(Node):
  """EvoNorm-S0: a normalization and activation in one, with group statistics.

    y = x sigmoid(v x) / σ_group · scale + bias

  The layer learns v, one number for each feature.

  Attributes:
    num_groups: Number of groups of neighbouring channels.
    epsilon: ε, added to the variance, in squared units of the activations.

  Raises:
    ValueError: If an option is out of range.

  Source: Liu et al. (2020), Table 2.
  """

  num_groups: int = 32
  epsilon: Number = 1e-5

  remembers = False
  scales = True

  def __post_init__(self):
    checks.number('epsilon', self.epsilon, checks.is_non_negative)

  def init(self, num_features: int, dtype: Any = jnp.float32) -> tuple[()]:
    """Returns (), because nothing is remembered."""
    del num_features, dtype
    return ()

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> dict[str, jax.Array]:
    """Returns `v` (num_features,), with initial value 1."""
    return {'v': jnp.ones(num_features, dtype)}

  def apply(
    self,
    x: jax.Array,
    state: tuple[()] = (),
    *,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    learned: Learned,
    use_running: bool = False,
    update: bool = True,
    mask: jax.Array | None = None,
    dtype: Any = None,
  ) -> tuple[jax.Array, tuple[()]]:
    """Normalizes and activates `x`; for arguments see `Normalization.apply`.

    `learned` holds the arrays from the method `learned`.
    """
    del update  # there is no state to update
    x, mask, scale, bias = checks.activations(x, mask, scale, bias)
    checks.no_running(use_running)
    if x.size == 0:
      return jnp.zeros(x.shape, checks.result_type(x, dtype)), state
    group = Normalization(
      Example('all', self.num_groups), Standardize(epsilon=self.epsilon)
    ).measure(x, mask)
    z = apply_mask(mask, wide(x))
    y = z * jax.nn.sigmoid(learned['v'].astype(z.dtype) * z)
    epsilon = checks.number_of_type(self.epsilon, z)
    y = y * jax.lax.rsqrt(group.variance + epsilon)
    return _affine(y, x, mask, scale, bias, dtype), state


def thresholded_linear_unit(x: jax.Array, threshold: jax.Array) -> jax.Array:
  """Returns max(x, τ), the learned activation after filter response norm.

  Args:
    x: Activations (..., features), floating.
    threshold: τ, (features,) or another shape that broadcasts against `x`.

  Returns:
    An array of the shape and dtype of `x`.

  Source: Singh and Krishnan (2020), equation 4.
  """
  return jnp.maximum(x, threshold.astype(x.dtype))


def weight_standardization(
  kernel: jax.Array, gain: jax.Array | None = None, epsilon: float = 1e-5
) -> jax.Array:
  """Standardizes a kernel: for each output, over all inputs.

    w = (v - E v) / √(Var v + ε) · gain

  Args:
    kernel: v, the kernel (..., inputs, outputs) of a dense layer or a
      convolution, floating.
    gain: None for 1, or an array (outputs,).
    epsilon: ε, added to the variance, in squared units of the weights.

  Returns:
    An array of the shape and dtype of `kernel`.

  Source: Qiao et al. (2019), equation 5.
  """
  # The inputs of a kernel play the role of the rows of a batch, and the outputs
  # play the role of the features. The batch scope thus fits a kernel.
  y, _ = Normalization(Batch(), Standardize(epsilon=epsilon)).apply(
    kernel, scale=gain
  )
  return y


def weight_norm(
  direction: jax.Array, length: jax.Array, epsilon: float = 1e-12
) -> jax.Array:
  """Returns the kernel of a given direction and length, for each output.

    w = length · v / √(‖v‖² + ε)

  The paper combines weight normalization with `mean_only_batch_norm` after the
  layer.

  Args:
    direction: v, (..., inputs, outputs), floating.
    length: The norm of w for each output, (outputs,).
    epsilon: ε, added to the squared norm.

  Returns:
    The kernel w, of the shape and dtype of `direction`.

  Source: Salimans and Kingma (2016), equation 2.
  """
  # With ε under the root, a direction of zero has a finite gradient.
  axes = tuple(range(direction.ndim - 1))
  v = wide(direction)
  squares = jnp.sum(v * v, axes, keepdims=True)
  kernel = v * jax.lax.rsqrt(squares + epsilon) * length
  return kernel.astype(direction.dtype)
