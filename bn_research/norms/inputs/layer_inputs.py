"""Moments of the inputs of a kernel: features of a layer, or patches."""

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.axes import Scope
from bn_research.norms.maps import Whiten
from bn_research.norms.scopes import Batch
from bn_research.norms.statistics.moments import Moments

_BATCH = Batch()


def input_moments(x: jax.Array, scope: Scope = _BATCH) -> Moments:
  """Returns the mean and covariance of the inputs of a kernel.

  No gradient flows through the moments.

  Args:
    x: Inputs of the layer, floating: (batch, ..., d), or for a convolution
      (batch, *space, channels).
    scope: `Batch` for a dense layer, which pools all axes except the last, or
      the `Patches` under a convolution. With an `axis_name` the scope pools
      over devices, under `shard_map`, `pmap` or `vmap`. Plain jit over a mesh
      pools over all devices without a name.

  Returns:
    Moments with count and mean (d,) and co-moment (1, d, d), in float32 or a
    wider type. For patches d = prod(kernel_size) · channels, in the order of a
    kernel (*kernel_size, channels, features).
  """
  whiten = Whiten()
  x = lax.stop_gradient(x)
  view = scope.view(x, whiten)
  _, moments = scope.moments(view, view.split(x), None, whiten)
  size = moments.mean.shape[-1]
  return Moments(
    jnp.broadcast_to(moments.count, moments.mean.shape).reshape(size),
    moments.mean.reshape(size),
    moments.comoment.reshape(1, size, size),
  )
