"""Moments of what a layer's kernel multiplies: of features, or of patches."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.maps import Whiten
from bn_research.norms.scopes import Batch
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.collectives import AxisNames
from bn_research.norms.statistics.moments import Moments


def feature_moments(x: jax.Array, axis_name: AxisNames = None) -> Moments:
  """Mean and covariance of the inputs of a dense layer.

  No gradient flows through them.

  Args:
    x: (batch, ..., d), floating; all axes but the last are pooled.
    axis_name: Named mesh axes to pool over, in `shard_map` and alike; a `jit`
      over a mesh pools over all devices as it is.

  Returns:
    Count and mean (d,), and co-moment (1, d, d).
  """
  scope, whiten = Batch(axis_name=axis_name), Whiten()
  x = lax.stop_gradient(x)
  view = scope.view(x, whiten)
  _, moments = scope.moments(view, view.split(x), None, whiten)
  size = x.shape[-1]
  return Moments(
    jnp.broadcast_to(moments.count, moments.mean.shape).reshape(size),
    moments.mean.reshape(size),
    moments.comoment.reshape(1, size, size),
  )


def patch_moments(
  x: jax.Array,
  kernel_size: Sequence[int],
  strides: Sequence[int],
  padding: Any,
  *,
  input_dilation: Sequence[int] | None = None,
  kernel_dilation: Sequence[int] | None = None,
  axis_name: AxisNames = None,
) -> Moments:
  """Mean and covariance of the patches that a convolution's kernel meets.

  A convolution is a dense layer on patches, of d = prod(kernel_size) · channels
  numbers in the order of a kernel (*kernel_size, channels, features). They take
  prod(kernel_size) times the memory of `x`.

  Args:
    x: (batch, *space, channels), floating.
    kernel_size: Of each axis of space.
    strides: Of each axis of space.
    padding: As for `lax.conv_general_dilated`.
    input_dilation: As there; None for none.
    kernel_dilation: As there; None for none.
    axis_name: As for `feature_moments`.

  Returns:
    Count and mean (d,), and co-moment (1, d, d).
  """
  last = x.ndim - 1
  x = meshes.whole_features(x)
  layout = (0, last, *range(1, last))
  kernel_layout = (last, last - 1, *range(last - 1))
  patches = lax.conv_general_dilated_patches(
    lax.stop_gradient(x),
    tuple(kernel_size),
    tuple(strides),
    padding,
    lhs_dilation=input_dilation,
    rhs_dilation=kernel_dilation,
    dimension_numbers=lax.ConvDimensionNumbers(layout, kernel_layout, layout),
    # A copy, made by a convolution: it must not round.
    precision=lax.Precision.HIGHEST,
  )
  by_channel = patches.reshape((*patches.shape[:-1], x.shape[-1], -1))
  return feature_moments(
    jnp.swapaxes(by_channel, -1, -2).reshape(patches.shape), axis_name
  )
