"""The words of Flax, read: from the attributes of a layer to a normalization.

A layer of Flax is described by its attributes (`axis`, `reduction_axes`,
`epsilon`, ...), which have the same names in flax.nnx and flax.linen. The
attributes are read at every call, so that an attribute that was assigned takes
effect at the next call; what they say is built once and then remembered.
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

_remember = functools.lru_cache(maxsize=1024, typed=True)


def batch_norm(layer: Any, ndim: int) -> tuple[Normalization, Axes]:
  """Returns what a `BatchNorm` of Flax does to `ndim` axes.

  Args:
    layer: Of flax.nnx or flax.linen, or ours.
    ndim: Number of axes of the activations.

  Returns:
    The normalization, and the feature axes.
  """
  axis = layer.axis
  features: Axes = (ndim - 1,)
  if axis != -1:  # or the normalization is the same for any number of axes
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
  return Normalization(
    Batch(axis=axis, axis_name=axis_name, axis_index_groups=groups),
    Standardize(epsilon=epsilon),
    Ema(momentum, debias=False, unbiased=False),
  )


def layer_norm(layer: Any, ndim: int) -> tuple[Normalization, Axes]:
  """Returns what a `LayerNorm` of Flax does, and the feature axes."""
  return _per_example(layer, ndim, layer.feature_axes, layer.reduction_axes)


def rms_norm(layer: Any, ndim: int) -> tuple[Normalization, Axes]:
  """Returns what an `RMSNorm` of Flax does, and the feature axes."""
  return _per_example(
    layer, ndim, layer.feature_axes, layer.reduction_axes, centre=False
  )


def instance_norm(layer: Any, ndim: int) -> tuple[Normalization, Axes]:
  """Returns what an `InstanceNorm` of Flax does, and the feature axes.

  Raises:
    ValueError: If the feature axes include the first; in Flax's words, because
      Flax's own tests match them.
  """
  features = axes(layer.feature_axes, ndim)
  if 0 in features:
    raise ValueError(
      'The channel axes cannot include the leading dimension as this is assumed'
      f' to be the batch axis; feature_axes={layer.feature_axes} does.'
    )
  pooled = tuple(a for a in range(1, ndim) if a not in features)
  return _per_example(layer, ndim, layer.feature_axes, pooled)


def group_norm(
  layer: Any, ndim: int, num_groups: int | None, group_size: int | None
) -> tuple[Normalization, Axes]:
  """Returns what a `GroupNorm` of Flax does, and the feature axes."""
  if num_groups is None and group_size is None:
    raise ValueError(
      'num_groups and group_size are both None; give one of them.'
    )
  pooled = layer.reduction_axes
  if pooled is None:
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
  """Calls a builder that remembers, or builds anew if it cannot remember."""
  try:
    return build(*options)
  except TypeError:
    # Lists cannot be remembered, nor can arrays, such as a traced momentum.
    return build.__wrapped__(*map(_plain, options))  # type: ignore[attr-defined]


def _plain(option: Any) -> Any:
  return option.item() if isinstance(option, np.generic) else as_tuples(option)


def axes(given: int | Iterable[int], ndim: int) -> Axes:
  """Returns axes ascending and non-negative; one named twice counts once."""
  if isinstance(given, int):
    return canonical_axes(given, ndim)
  return tuple(sorted({canonical_axes(axis, ndim)[0] for axis in given}))
