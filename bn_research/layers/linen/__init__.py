"""Normalizations as flax.linen modules: the layers of Flax, and `Norm`.

A changed import is enough to switch a model:

  >>> import jax
  >>> from bn_research.layers import linen as layers
  >>> layer = layers.BatchNorm(momentum=0.9, use_running_average=False)
  >>> x = jax.random.normal(jax.random.key(0), (5, 6))
  >>> variables = layer.init(jax.random.key(1), x)
  >>> y, moved = layer.apply(variables, x, mutable=['batch_stats'])

`Norm` makes a layer of any normalization, such as ghost batch normalization:

  >>> from bn_research import norms
  >>> layer = layers.Norm(norms.batch_norm(group_size=2))
  >>> variables = layer.init(jax.random.key(1), x, use_running_average=False)
  >>> layer.apply(variables, x, use_running_average=True).shape
  (5, 6)

For all layers, initialization moves no statistics and needs no bound axis name.
Evaluation writes nothing, hence no collection needs to be mutable. The
transforms of Flax take these options:

- `nn.scan` over layers, each layer with parameters and statistics for itself:
  `variable_axes={'params': 0, 'batch_stats': 0}`.
- `nn.scan` over time, with a single set of statistics that every step moves:
  `variable_carry='batch_stats', variable_broadcast='params'`. Initialize the
  block outside of the scan.
- `nn.vmap` over models: `variable_axes={'params': 0, 'batch_stats': 0}`.
- `nn.vmap` over examples: `variable_axes={'params': None, 'batch_stats': None}`
  and the same `axis_name` for the transform and for the layer.
- `nn.remat`: no options.

The layers are subclasses of the layers of Flax and take all arguments of Flax.
An error names a wrong argument early. The numbers differ from Flax in these
points:

- The variance is always computed in a stable way, with a single collective over
  named axes, and `use_fast_variance` has no effect. Reductions are in float32
  or wider; `force_float32_reductions=False` sets only the type of the running
  statistics.
- Activations under a mask take no part in the statistics, and their results are
  0. Flax normalizes the masked activations too.
- Over devices, every example has the same weight, and a device may have no
  example. Flax gives every device the same weight.
- A batch with all examples masked, or with moments that are not finite, leaves
  the running statistics unchanged.
- In training, `BatchNorm` refuses an array without activations.
- Activations must be real floating-point numbers. Complex activations are
  refused: give real and imaginary parts as features. Flax centres complex
  activations and divides by the root of `E |x - E x|²`.
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
