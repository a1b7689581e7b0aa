"""Moments over several devices, for statistics with and without a merge."""

from typing import Any

import jax
import jax.numpy as jnp

from bn_research.norms.axes import Map
from bn_research.norms.statistics.collectives import ONE_DEVICE, Devices
from bn_research.norms.statistics.moments import Axes, Moments, gathered


def estimate_over_devices(
  map_: Map, x: jax.Array, mask: jax.Array | None, axes: Axes, devices: Devices
) -> Moments:
  """Estimates the moments over `axes` of `x` and over named devices.

  Statistics with a merge travel between devices as moments. Statistics without
  a merge need the activations: one collective of the size of `x` brings the
  rows of all devices to each device.

  Args:
    map_: The map that estimates the moments.
    x: Activations of this device, of any shape, floating.
    mask: None, or boolean and broadcastable against `x`. False hides an
      activation.
    axes: Axes of `x` to pool; the pooled axes stay, with size 1.
    devices: Devices to pool over.

  Returns:
    The moments, with the type that the map estimates in.
  """
  if map_.ordinary or not devices.names:
    return map_.estimate(x, mask, axes, devices)
  if map_.merges:
    local = map_.estimate(x, mask, axes, ONE_DEVICE)
    blocks = gathered(_with_leading_axis(local), devices)
    return _first(map_.merge(blocks, 0))
  if mask is not None:
    shape = (1,) * (x.ndim - mask.ndim) + mask.shape
    # A gather over several axes is a sum, and a sum needs integers.
    bits = devices.gather(mask.reshape(shape).astype(jnp.int32))
    mask = bits.astype(bool)
  # The gather adds a leading axis of devices, which is pooled like the axes.
  everywhere = (0, *(axis + 1 for axis in axes))
  return _first(map_.estimate(devices.gather(x), mask, everywhere, ONE_DEVICE))


def _with_leading_axis(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf[None], tree)


def _first(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf[0], tree)
