"""Networks in float64, so that a test sees more than rounding errors."""

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import models


class Double(nnx.Module):
  """A network of the project in float64."""

  def __init__(self, *, kind, options, input_shape, num_classes, norm, rngs):
    make = {'mlp': models.mlp.MLP, 'resnet': models.resnet.resnet}[kind]
    self.network = make(
      input_shape=input_shape,
      num_classes=num_classes,
      norm=norm,
      rngs=rngs,
      **options,
    )
    for _, module in nnx.iter_modules(self.network):
      if hasattr(module, 'dtype'):
        module.dtype = None  # The type of the input and of the parameters.
    state = nnx.state(self.network)
    wide = lambda leaf: (
      leaf.astype(jnp.float64)
      if jnp.issubdtype(leaf.dtype, jnp.floating)
      else leaf
    )
    nnx.update(self.network, jax.tree.map(wide, state))

  def __call__(self, x, **given):
    return self.network(x.astype(jnp.float64), **given)
