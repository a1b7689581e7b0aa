"""EvoNorm: normalization and nonlinearity in one formula.

The classes have the methods `init`, `learned` and `apply` of a `Normalization`,
and can replace a `Normalization`. No choice of scope, map, population and
gradient gives these methods, because the result is not an affine function of
the activation for given moments.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bn_research.norms import checks
from bn_research.norms.maps.standardize import Standardize
from bn_research.norms.methods.stateless import Stateless
from bn_research.norms.normalization import Normalization
from bn_research.norms.populations import Ema, Running
from bn_research.norms.pytrees import Node, Number, Schedule
from bn_research.norms.scopes import Batch, Example
from bn_research.norms.statistics.collectives import AxisNames
from bn_research.norms.statistics.moments import (
  affine,
  aligned,
  apply_mask,
  wide,
)
from bn_research.norms.statistics.views import as_tuples

Learned = Mapping[str, jax.Array]


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

  def over_devices(self, axis_name: str) -> 'EvoNormB0':
    """Returns the normalization with a name of devices; see `Scope`."""
    if self.axis_name is not None:
      return self
    return dataclasses.replace(self, axis_name=axis_name)

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
    variance = aligned(variance, z)
    epsilon = checks.number_of_type(self.epsilon, z)
    v = aligned(learned['v'], z)
    example = v * z + jnp.sqrt(instance.variance + epsilon)
    y = z / jnp.maximum(jnp.sqrt(variance + epsilon), example)
    state = self._batch.learn(state, moments) if update else state
    y = affine(y, scale, bias, mask)
    return y.astype(checks.result_type(x, dtype)), state


@dataclasses.dataclass(frozen=True)
class EvoNormS0(Stateless):
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

  scales = True

  def __post_init__(self):
    checks.number('epsilon', self.epsilon, checks.is_non_negative)

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
    y = z * jax.nn.sigmoid(aligned(learned['v'], z) * z)
    epsilon = checks.number_of_type(self.epsilon, z)
    y = y * jax.lax.rsqrt(group.variance + epsilon)
    y = affine(y, scale, bias, mask)
    return y.astype(checks.result_type(x, dtype)), state
