"""Translates the attributes of a Flax layer into a normalization.

The attributes (`axis`, `reduction_axes`, `epsilon`, ...) have the same names in
flax.nnx and flax.linen. Every call of a layer reads the attributes, hence a new
value takes effect at the next call. A cache keeps the normalization of each
combination of values.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bn_research.norms import (
  Batch,
  Ema,
  Example,
  Normalization,
  Standardize,
)
from bn_research.norms.statistics.views import as_tuples, canonical_axes

Axes = tuple[int, ...]

# `typed`, because 1, 1.0 and True are the same key of a dictionary, and are
# different options.
_remember = functools.lru_cache(maxsize=1024, typed=True)


def batch_norm(layer: Any, ndim: int) -> tuple[Normalization, Axes]:
  """Returns the normalization of a `BatchNorm` layer.

  Args:
    layer: A `BatchNorm` of flax.nnx, flax.linen or `bn_research.layers`.
    ndim: Number of axes of the activations.

  Returns:
    The normalization, and the feature axes.

  Raises:
    ValueError: If an axis does not exist, or an option is out of range.
  """
  axis = layer.axis
  features: Axes = (ndim - 1,)
  # With axis=-1 kept, the cache has a single entry for every `ndim`.
  if axis != -1:
    axis = features = axes(axis, ndim)
  normalization = _built(
    _batch_norm,
    axis,
    layer.epsilon,
    layer.momentum,
    layer.axis_name,
    layer.axis_index_groups,
  )
  return normalization, features


@_remember
def _batch_norm(axis, epsilon, momentum, axis_name, groups):
  for name, value in (('epsilon', epsilon), ('momentum', momentum)):
    if callable(value):
      raise ValueError(
        f'{name}={value} is a schedule, and a BatchNorm with the variables of '
        'Flax counts no updates; use the layer Norm with '
        'norms.batch_norm(...), which counts the updates.'
      )
  return Normalization(
    Batch(axis=axis, axis_name=axis_name, axis_index_groups=groups),
    Standardize(epsilon=epsilon),
    Ema(momentum, debias=False, unbiased=False),
  )


def layer_norm(layer: Any, ndim: int) -> tuple[Normalization, Axes]:
  """Returns the normalization of a `LayerNorm` layer.

  Args:
    layer: A `LayerNorm` of flax.nnx, flax.linen or `bn_research.layers`.
    ndim: Number of axes of the activations.

  Returns:
    The normalization, and the feature axes.

  Raises:
    ValueError: If an axis does not exist, or an option is out of range.
  """
  return _per_example(layer, ndim, layer.feature_axes, layer.reduction_axes)


def rms_norm(layer: Any, ndim: int) -> tuple[Normalization, Axes]:
  """Returns the normalization of an `RMSNorm` layer.

  Args:
    layer: An `RMSNorm` of flax.nnx, flax.linen or `bn_research.layers`.
    ndim: Number of axes of the activations.

  Returns:
    The normalization, and the feature axes.

  Raises:
    ValueError: If an axis does not exist, or an option is out of range.
  """
  return _per_example(
    layer, ndim, layer.feature_axes, layer.reduction_axes, centre=False
  )


def instance_norm(layer: Any, ndim: int) -> tuple[Normalization, Axes]:
  """Returns the normalization of an `InstanceNorm` layer.

  Args:
    layer: An `InstanceNorm` of flax.nnx, flax.linen or `bn_research.layers`.
    ndim: Number of axes of the activations.

  Returns:
    The normalization, and the feature axes.

  Raises:
    ValueError: If the feature axes include the first axis, if an axis does not
      exist, or if an option is out of range.
  """
  features = axes(layer.feature_axes, ndim)
  if 0 in features:
    # The message begins with the words of Flax, because the tests of Flax match
    # these words.
    raise ValueError(
      'The channel axes cannot include the leading dimension as this is assumed'
      f' to be the batch axis; feature_axes={layer.feature_axes} does.'
    )
  pooled = tuple(a for a in range(1, ndim) if a not in features)
  return _per_example(layer, ndim, layer.feature_axes, pooled)


def group_norm(
  layer: Any, ndim: int, num_groups: int | None, group_size: int | None
) -> tuple[Normalization, Axes]:
  """Returns the normalization of a `GroupNorm` layer.

  Args:
    layer: A `GroupNorm` of flax.nnx, flax.linen or `bn_research.layers`.
    ndim: Number of axes of the activations.
    num_groups: None, or the number of groups of channels.
    group_size: None, or the number of channels of a group.

  Returns:
    The normalization, and the feature axes.

  Raises:
    ValueError: If both numbers are None or both are given, if an axis does not
      exist, or if an option is out of range.
  """
  if num_groups is None and group_size is None:
    raise ValueError(
      'num_groups and group_size are both None; give either num_groups or '
      'group_size.'
    )
  pooled = layer.reduction_axes
  if pooled is None:
    # Flax pools all positions of a group by default: all axes but the first.
    pooled = (*range(1, ndim - 1), -1)
  return _per_example(layer, ndim, -1, pooled, True, num_groups, group_size)


def _per_example(
  layer, ndim, features, pooled, centre=True, num_groups=None, group_size=None
) -> tuple[Normalization, Axes]:
  return _built(
    _per_example_of,
    ndim,
    features,
    pooled,
    centre,
    num_groups,
    group_size,
    layer.epsilon,
    layer.axis_name,
    layer.axis_index_groups,
  )


@_remember
def _per_example_of(
  ndim,
  features,
  pooled,
  centre,
  num_groups,
  group_size,
  epsilon,
  axis_name,
  groups,
):
  scope = Example(axes(pooled, ndim), num_groups, group_size, axis_name, groups)
  map_ = Standardize(centre=centre, epsilon=epsilon)
  return Normalization(scope, map_), axes(features, ndim)


def _built(build: Callable[..., Any], *options: Any) -> Any:
  """Calls a builder with a cache, or without the cache for unhashable options.

  A list is unhashable, and an array, such as a traced momentum, is too.
  """
  try:
    return build(*options)
  except TypeError:
    # The second call raises a TypeError of the builder again.
    return build.__wrapped__(*map(_plain, options))  # type: ignore[attr-defined]


def _plain(option: Any) -> Any:
  return option.item() if isinstance(option, np.generic) else as_tuples(option)


def axes(given: int | Iterable[int], ndim: int) -> Axes:
  """Returns the axes ascending, non-negative and without duplicates.

  Args:
    given: An axis or several axes, possibly negative.
    ndim: Number of axes of the array.

  Returns:
    A tuple of integers in [0, ndim).

  Raises:
    ValueError: If an axis does not exist.
  """
  if isinstance(given, int):
    return canonical_axes(given, ndim)
  return tuple(sorted({canonical_axes(axis, ndim)[0] for axis in given}))
