"""Changing a normalization: frozen, synchronized, folded into a kernel.

Each is a function of a `Normalization` or of arrays; `layers.surgery` applies
them to whole models.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import gradients
from bn_research.norms.axes import Pair, Population
from bn_research.norms.combine import mapped
from bn_research.norms.normalization import Normalization
from bn_research.norms.populations import Fixed
from bn_research.norms.statistics.collectives import AxisNames


def freeze(normalization: Normalization) -> Normalization:
  """Returns one that always uses its running moments and never moves them.

  It is a point of the product, population `Fixed` and gradient `frozen`, so
  that no flag of a later call thaws it. Of a `Chain` and its like, so is each
  part that remembers.

  Raises:
    ValueError: If it remembers nothing, or is not a point of the product.
  """
  if not normalization.remembers:
    raise ValueError(
      f'{normalization} has no running statistics to freeze; it is the same in '
      'training and inference already.'
    )
  return mapped(_frozen, normalization)


def _frozen(normalization: Any) -> Any:
  if not normalization.remembers:
    return normalization
  population = _point(normalization).population
  # What an interval recalls is not its mean and variance of today.
  assert population is not None
  recalls_itself = type(population).recall is not Population.recall
  fixed = Fixed(population if recalls_itself else None)
  return dataclasses.replace(
    normalization, population=fixed, gradient=gradients.frozen
  )


def _point(normalization: Any) -> Normalization:
  if not isinstance(normalization, Normalization):
    raise ValueError(
      f'{normalization} is not a norms.Normalization, with axes that could be '
      'changed; call it with use_running and update, or replace it.'
    )
  return normalization


def sync(normalization: Normalization, axis_name: AxisNames) -> Normalization:
  """Returns one whose statistics are pooled over named mesh axes.

  Of a `Chain` and its like, so are those of each part that remembers.

  Args:
    normalization: One with a scope that has an `axis_name`, such as `Batch`.
    axis_name: The axes; None to take them away.

  Raises:
    ValueError: If the scope has none.
  """

  def change(part):
    # Of a combination, what pools within an example is whole on each device.
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
  scope = dataclasses.replace(scope, axis_name=axis_name)
  return dataclasses.replace(normalization, scope=scope)


def affine_of(
  normalization: Normalization,
  state: Any,
  scale: jax.Array | None = None,
  bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns D and e such that inference is y = x D + e.

  With running moments every normalization of the batch is affine, whitening
  too.

  Args:
    normalization: One that remembers.
    state: Its state.
    scale: That of the layer.
    bias: That of the layer.

  Returns:
    D (features, features) and e (features,).

  Raises:
    ValueError: If it is not a point of the product, and so perhaps not affine.
  """
  point = _point(normalization)
  if point.population is None:
    raise ValueError(
      f'{normalization} depends on the example at inference too, so inference '
      'is not affine; give it a population, such as Ema().'
    )
  map_ = point.map.at(state.steps)
  pair = point.population.recall(state, map_)
  dtype = pair.mean.dtype if pair.mean is not None else pair.spread.dtype
  infer = partial(map_.finish, mask=None, scale=scale, bias=None, dtype=dtype)
  # A step away from a large mean would be rounded away: step from zero.
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
) -> tuple[jax.Array, jax.Array]:
  """Folds a normalization into the dense layer or convolution before it.

    (x K + k) D + e = x (K D) + (k D + e)

  Args:
    kernel: K, (..., inputs, features): outputs last.
    kernel_bias: k, (features,), or None.
    normalization: That which follows.
    state: Its state.
    scale: That of its layer.
    bias: That of its layer.
    feature_group_count: That of the convolution, which its kernel does not
      tell; None where it does not matter, because each output is normalized by
      itself, or the kernel is that of a dense layer.

  Returns:
    A kernel and a bias that do both for inference.

  Raises:
    ValueError: If the normalization mixes outputs that see different inputs, or
      the number of groups matters and is not given.
  """
  _require_shared_inputs(kernel, normalization, state, feature_group_count)
  slope, shift = affine_of(normalization, state, scale, bias)
  folded = jnp.matmul(kernel, slope, precision=lax.Precision.HIGHEST)
  if kernel_bias is not None:
    shift = shift + jnp.matmul(
      kernel_bias, slope, precision=lax.Precision.HIGHEST
    )
  return folded.astype(kernel.dtype), shift.astype(kernel.dtype)


def _require_shared_inputs(kernel, normalization, state, groups) -> None:
  """Raises where D mixes outputs of different groups of a convolution."""
  mixed = state.var.shape[-1] if _point(normalization).map.joint else 1
  if mixed == 1 or (kernel.ndim == 2 and groups is None):
    return
  if groups is None:
    raise ValueError(
      f'whitening mixes outputs, and the kernel of shape {kernel.shape} does '
      'not tell whether they see the same inputs; give feature_group_count, '
      'that of the convolution, 1 by default.'
    )
  outputs = kernel.shape[-1]
  if groups < 1 or outputs % groups:
    raise ValueError(
      f'feature_group_count={groups} does not divide the {outputs} outputs of '
      f'the kernel of shape {kernel.shape}; give that of the convolution.'
    )
  if groups > 1 and outputs // groups % mixed:
    raise ValueError(
      f'the outputs of a convolution of feature_group_count={groups} see '
      f'different inputs, and whitening mixes {mixed} neighbours of {outputs}; '
      'such a pair cannot be folded, unless by a group_size that divides '
      f'{outputs // groups}.'
    )
