"""Surgery: a normalization frozen, synchronized, or folded into a kernel.

The functions take a `Normalization` or arrays. `layers.surgery` applies the
functions to whole models.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import gradients
from bn_research.norms.axes import Pair
from bn_research.norms.combination import mapped
from bn_research.norms.normalization import Normalization
from bn_research.norms.populations import Fixed
from bn_research.norms.statistics.collectives import AxisNames


def freeze(normalization: Normalization) -> Normalization:
  """Returns a normalization that uses and never changes the running moments.

  The result has the population `Fixed` and the gradient `frozen`. No flag of a
  later call can thaw the result. In a `Chain` or a similar combination, each
  part with running statistics is frozen.

  Args:
    normalization: A normalization with running statistics.

  Raises:
    ValueError: If the normalization has no running statistics, or is no
      `Normalization` and no combination.
  """
  if not normalization.remembers:
    raise ValueError(
      f'{normalization} has no running statistics to freeze; training and '
      'inference are the same already.'
    )
  return mapped(_frozen, normalization)


def _frozen(normalization: Any) -> Any:
  if not normalization.remembers:
    return normalization
  fixed = _point(normalization).population
  if not isinstance(fixed, Fixed):
    # The population still reads the state: an `Interval` normalizes with the
    # pair of the last renewal, and not with the latest mean and variance.
    fixed = Fixed(fixed)
  return dataclasses.replace(
    normalization, population=fixed, gradient=gradients.frozen
  )


def _point(normalization: Any) -> Normalization:
  if not isinstance(normalization, Normalization):
    raise ValueError(
      f'{normalization} is not a norms.Normalization, so no axis can be '
      'changed; call the layer with use_running and update, or replace the '
      'normalization.'
    )
  return normalization


def sync(normalization: Normalization, axis_name: AxisNames) -> Normalization:
  """Returns a normalization that pools statistics over named mesh axes.

  In a `Chain` or a similar combination, the change applies to each part with
  running statistics.

  Args:
    normalization: A normalization with a scope that has an `axis_name`, for
      example `Batch`.
    axis_name: Names of the mesh axes; None to remove all names. Groups of
      devices are removed too.

  Raises:
    ValueError: If the scope has no `axis_name`, or if the normalization is no
      `Normalization` and no combination.
  """

  def change(part):
    # A part without running statistics pools within an example, and each device
    # holds whole examples. Such a part needs no axis name in a combination.
    is_one_of_several = part is not normalization and not part.remembers
    return part if is_one_of_several else _synced(part, axis_name)

  return mapped(change, normalization)


def _synced(normalization: Any, axis_name: AxisNames) -> Normalization:
  scope: Any = _point(normalization).scope
  if 'axis_name' not in {field.name for field in dataclasses.fields(scope)}:
    raise ValueError(
      f'{scope} shares nothing over devices; only Batch and Example have an '
      'axis_name.'
    )
  # The old groups are of the devices along the old axes.
  scope = dataclasses.replace(
    scope, axis_name=axis_name, axis_index_groups=None
  )
  return dataclasses.replace(normalization, scope=scope)


def affine_of(
  normalization: Normalization,
  state: Any,
  scale: jax.Array | None = None,
  bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns D and e of the affine function y = x D + e of inference.

  With running moments, inference is affine for every normalization, also for
  whitening.

  Args:
    normalization: A `Normalization` with a population.
    state: The state of the normalization.
    scale: None for 1, or the scale of the layer, (features,).
    bias: None for 0, or the bias of the layer, (features,).

  Returns:
    D (features, features) and e (features,), of the dtype of the state, but
    float32 at least.

  Raises:
    ValueError: If the normalization has no population, or is no
      `Normalization`.
  """
  point = _point(normalization)
  if point.population is None:
    raise ValueError(
      f'{normalization} depends on the example also at inference, so inference '
      'is not affine; give the normalization a population, such as Ema().'
    )
  map_ = point.map.at(state.steps)
  pair = point.population.recall(state, map_)
  dtype = pair.mean.dtype if pair.mean is not None else pair.spread.dtype
  infer = partial(map_.finish, mask=None, scale=scale, bias=None, dtype=dtype)
  # The rows of D are the results for unit vectors. Next to a large mean, a unit
  # step would be lost to rounding, so the step starts from a mean of zero.
  centred = pair
  if pair.mean is not None:
    centred = pair._replace(mean=jnp.zeros_like(pair.mean))
  eye = jnp.eye(state.mean.shape[-1], dtype=dtype)
  slope = infer(eye, pair=_as_row(centred))
  origin = jnp.zeros_like(eye[:1])
  if pair.mean is not None:
    origin = pair.mean[None]
  moved = jnp.matmul(origin, slope, precision=lax.Precision.HIGHEST)
  shift = (infer(origin, pair=_as_row(pair)) - moved)[0]
  return slope, shift if bias is None else shift + bias


def _as_row(pair: Pair) -> Pair:
  """Lets the pair of a population broadcast against (rows, features)."""
  return jax.tree.map(lambda leaf: leaf[None], pair)


def fold(
  kernel: jax.Array,
  kernel_bias: jax.Array | None,
  normalization: Normalization,
  state: Any,
  scale: jax.Array | None = None,
  bias: jax.Array | None = None,
  feature_group_count: int | None = None,
  *,
  transpose_kernel: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Folds a normalization into the dense layer or convolution before it.

    (x K + k) D + e = x (K D) + (k D + e)

  Args:
    kernel: K, (..., inputs, features), floating; (..., features, inputs) with
      `transpose_kernel`.
    kernel_bias: k, (features,), or None for 0.
    normalization: The normalization after the kernel.
    state: The state of the normalization.
    scale: None for 1, or the scale of the normalization layer, (features,).
    bias: None for 0, or the bias of the normalization layer, (features,).
    feature_group_count: Number of feature groups of the convolution. None is
      enough for a dense layer, and for a normalization that treats each output
      separately.
    transpose_kernel: Whether the outputs are the second to last axis of the
      kernel, as in a transposed convolution with this option of Flax.

  Returns:
    A kernel of the shape of K and a bias (features,), both of the dtype of K.
    At inference one layer with this kernel and bias replaces both layers.

  Raises:
    ValueError: If the normalization mixes outputs that see different inputs, if
      `feature_group_count` is needed and missing, or if `affine_of` raises.
  """
  if transpose_kernel:
    kernel = jnp.swapaxes(kernel, -1, -2)
  _require_shared_inputs(kernel, normalization, state, feature_group_count)
  slope, shift = affine_of(normalization, state, scale, bias)
  folded = jnp.matmul(kernel, slope, precision=lax.Precision.HIGHEST)
  if transpose_kernel:
    folded = jnp.swapaxes(folded, -1, -2)
  if kernel_bias is not None:
    shift = shift + jnp.matmul(
      kernel_bias, slope, precision=lax.Precision.HIGHEST
    )
  return folded.astype(kernel.dtype), shift.astype(kernel.dtype)


def _require_shared_inputs(kernel, normalization, state, groups) -> None:
  """Raises a ValueError if D mixes outputs of different feature groups."""
  mixed = state.var.shape[-1] if _point(normalization).map.joint else 1
  if mixed == 1 or (kernel.ndim == 2 and groups is None):
    return
  if groups is None:
    raise ValueError(
      f'whitening mixes outputs, and the kernel of shape {kernel.shape} does '
      'not tell whether all outputs see the same inputs; give '
      'feature_group_count of the convolution, by default 1.'
    )
  outputs = kernel.shape[-1]
  if groups < 1 or outputs % groups:
    raise ValueError(
      f'feature_group_count={groups} does not divide the {outputs} outputs of '
      f'the kernel of shape {kernel.shape}; give feature_group_count of the '
      'convolution.'
    )
  if groups > 1 and outputs // groups % mixed:
    raise ValueError(
      f'the outputs of a convolution of feature_group_count={groups} see '
      f'different inputs, and whitening mixes {mixed} neighbours of {outputs}; '
      'this whitening cannot be folded; whiten with a group_size that divides '
      f'{outputs // groups}.'
    )
