"""Moments over several devices, by what the statistics of a map allow."""

from typing import Any

import jax
import jax.numpy as jnp

from bn_research.norms.axes import Map
from bn_research.norms.statistics.collectives import Devices
from bn_research.norms.statistics.moments import Axes, Moments, gathered

_ALONE = Devices()


def estimate_over_devices(
  map_: Map, x: jax.Array, mask: jax.Array | None, axes: Axes, devices: Devices
) -> Moments:
  """Estimates the moments of `axes` of `x` and of named devices.

  Ordinary moments, and statistics with a merge of their own, travel as moments.
  Statistics that do not merge need the activations themselves: one collective
  of the size of `x` brings the rows of all devices to each device.

  Args:
    map_: What estimates.
    x: Activations of this device.
    mask: None, or boolean and broadcastable against `x`.
    axes: Axes of `x` that are pooled; they stay, with size 1.
    devices: Devices that are pooled too.
  """
  if map_.ordinary or not devices.names:
    return map_.estimate(x, mask, axes, devices)
  if map_.merges:
    local = map_.estimate(x, mask, axes, _ALONE)
    blocks = gathered(_with_leading_axis(local), devices)
    return _first(map_.merge(blocks, 0))
  if mask is not None:
    shape = (1,) * (x.ndim - mask.ndim) + mask.shape
    # Integers, because a gather over several axes is a sum.
    bits = devices.gather(mask.reshape(shape).astype(jnp.int32))
    mask = bits.astype(bool)
  everywhere = (0, *(axis + 1 for axis in axes))
  return _first(map_.estimate(devices.gather(x), mask, everywhere, _ALONE))


def _with_leading_axis(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf[None], tree)


def _first(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf[0], tree)
