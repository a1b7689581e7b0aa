"""Moments of the inputs of a kernel: features of a layer, or patches."""

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
  """Returns the mean and covariance of the inputs of a dense layer.

  No gradient flows through the moments.

  Args:
    x: Inputs (batch, ..., d), floating. The function pools all axes except the
      last.
    axis_name: Names of the mesh axes to pool over, under `shard_map`, `pmap` or
      `vmap`. Plain jit over a mesh pools over all devices without a name.

  Returns:
    Moments with count and mean (d,) and co-moment (1, d, d), in float32 or a
    wider type.
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
  """Returns the mean and covariance of the patches under a convolution.

  A convolution is a dense layer on patches. A patch has
  d = prod(kernel_size) · channels numbers, in the order of a kernel
  (*kernel_size, channels, features). The patches take prod(kernel_size) times
  the memory of `x`. No gradient flows through the moments.

  Args:
    x: Inputs (batch, *space, channels), floating.
    kernel_size: Size of the kernel along each axis of space.
    strides: Stride along each axis of space.
    padding: The padding, in a form of `lax.conv_general_dilated`.
    input_dilation: None for no dilation, or the dilation of `x` along each axis
      of space.
    kernel_dilation: None for no dilation, or the dilation of the kernel along
      each axis of space.
    axis_name: Names of the mesh axes to pool over, under `shard_map`, `pmap` or
      `vmap`.

  Returns:
    Moments with count and mean (d,) and co-moment (1, d, d), in float32 or a
    wider type.
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
    # A convolution copies the patches, and the copy must not round.
    precision=lax.Precision.HIGHEST,
  )
  # JAX orders the numbers of a patch by channel first, and a kernel orders the
  # numbers by position first.
  by_channel = patches.reshape((*patches.shape[:-1], x.shape[-1], -1))
  return feature_moments(
    jnp.swapaxes(by_channel, -1, -2).reshape(patches.shape), axis_name
  )
