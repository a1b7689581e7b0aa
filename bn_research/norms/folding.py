"""Folding: a normalization with running moments inside the layer beside it."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.axes import Pair
from bn_research.norms.normalization import Normalization
from bn_research.norms.surgery import point_of


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
  point = point_of(normalization)
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


def fold_into_next(
  kernel: jax.Array,
  kernel_bias: jax.Array | None,
  normalization: Normalization,
  state: Any,
  scale: jax.Array | None = None,
  bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Folds a normalization into the dense layer or convolution after it.

    (x D + e) K + k = x (D K) + (e K + k)

  For whitening with the mean μ and the matrix W, D = Wᵀ and e = -μ D, hence
  K' = Wᵀ K and k' = k - μ K'. With the scope `Patches`, x is a patch of a
  convolution, and the result normalizes each patch. Padding is normalized too,
  as a part of the patch.

  Args:
    kernel: K, (..., inputs, outputs), floating: for a convolution all axes
      except the last belong to the d inputs, a patch.
    kernel_bias: k, (outputs,), or None for 0.
    normalization: The normalization of the inputs, with a population.
    state: The state of the normalization, of d features.
    scale: None for 1, or the scale of the normalization layer, (d,).
    bias: None for 0, or the bias of the normalization layer, (d,).

  Returns:
    A kernel of the shape of K and a bias (outputs,), both of the dtype of K.

  Raises:
    ValueError: If the normalization is not of the d inputs of the kernel, or if
      `affine_of` raises.
  """
  inputs = math.prod(kernel.shape[:-1])
  if normalization.remembers and state.mean.size != inputs:
    raise ValueError(
      f'the kernel of shape {kernel.shape} has {inputs} inputs, and the state '
      f'is of {state.mean.size} features; give the moments of the inputs: '
      'those of Patches for a convolution without feature groups.'
    )
  slope, shift = affine_of(normalization, state, scale, bias)
  matrix = kernel.reshape(inputs, -1)
  product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
  shift = product(shift, matrix)
  if kernel_bias is not None:
    shift = shift + kernel_bias
  folded = product(slope, matrix).reshape(kernel.shape)
  return folded.astype(kernel.dtype), shift.astype(kernel.dtype)


def _require_shared_inputs(kernel, normalization, state, groups) -> None:
  """Raises a ValueError if D mixes outputs of different feature groups."""
  mixed = state.var.shape[-1] if point_of(normalization).map.joint else 1
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
