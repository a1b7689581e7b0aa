"""Normalizations as flax.linen modules: Flax's own layers, and any other.

A model is switched by its import:

  >>> import jax
  >>> from bn_research.layers import linen as layers
  >>> layer = layers.BatchNorm(momentum=0.9, use_running_average=False)
  >>> x = jax.random.normal(jax.random.key(0), (5, 6))
  >>> variables = layer.init(jax.random.key(1), x)
  >>> y, moved = layer.apply(variables, x, mutable=['batch_stats'])

What Flax does not have is a `Norm`:

  >>> from bn_research import norms
  >>> layer = layers.Norm(norms.batch_norm(group_size=2))
  >>> variables = layer.init(jax.random.key(1), x, use_running_average=False)
  >>> layer.apply(variables, x, use_running_average=True).shape
  (5, 6)

Initializing never moves statistics and needs no named axis to be bound, for all
of these layers. Evaluation writes nothing, so that no collection need be
mutable. Under Flax's transforms:

- `nn.scan` over layers: `variable_axes={'params': 0, 'batch_stats': 0}`, each
  layer has its own; over time, one set of statistics moved by each step:
  `variable_carry='batch_stats', variable_broadcast='params'`, initialized by
  the block outside of the scan.
- `nn.vmap` over models: `variable_axes={'params': 0, 'batch_stats': 0}`; over
  examples, `variable_axes={'params': None, 'batch_stats': None}` with the same
  `axis_name` for the transform and for the layer.
- `nn.remat` as it is.

These layers are subclasses of Flax's, and take all of Flax's arguments. They
differ where Flax is wrong, and in saying sooner what is wrong with a call:

- The variance is always a stable one, with one collective over named axes:
  `use_fast_variance` has no effect. Reductions are in float32 at least:
  `force_float32_reductions=False` is only the type of the running statistics.
- What a mask hides takes no part and comes out as 0, where Flax normalizes it
  along. Over devices, examples count alike, not devices, and a device may have
  none.
- A batch with no example, or with moments that are not finite, leaves the
  running statistics as they are.
- Activations must be real floating numbers, of which there are some. Complex
  ones, which Flax centres and divides by the root of E |x - E x|², are refused:
  give real and imaginary parts as features.
"""

from bn_research.layers.linen.batch_norm import BatchNorm
from bn_research.layers.linen.norm import Norm
from bn_research.layers.linen.per_example import (
  GroupNorm,
  InstanceNorm,
  LayerNorm,
  RMSNorm,
)

__all__ = [
  'BatchNorm',
  'GroupNorm',
  'InstanceNorm',
  'LayerNorm',
  'Norm',
  'RMSNorm',
]
