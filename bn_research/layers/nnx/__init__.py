"""Normalizations as flax.nnx modules: the layers of Flax, and `Norm`.

A changed import is enough to switch a model:

  >>> import jax
  >>> from flax import nnx
  >>> from bn_research.layers import nnx as layers
  >>> layer = layers.BatchNorm(6, momentum=0.9, rngs=nnx.Rngs(0))
  >>> x = jax.random.normal(jax.random.key(0), (5, 6))
  >>> y = layer(x)  # normalizes by the batch, moves the running statistics
  >>> layer.eval()
  >>> y = layer(x)  # normalizes by the running statistics

`Norm` makes a layer of any normalization, such as ghost batch normalization:

  >>> from bn_research import norms
  >>> ghost = norms.batch_norm(group_size=2)
  >>> layer = layers.Norm(ghost, 6, rngs=nnx.Rngs(0))
  >>> layer(x).shape
  (5, 6)

The layers are subclasses of the layers of Flax and take all arguments of Flax.
A search of a model for `nnx.BatchNorm` finds our layer too. An error names a
wrong argument early. The numbers differ from Flax in these points:

- The variance is always computed in a stable way, with a single collective over
  named axes, and `use_fast_variance` has no effect.
- The option `dtype` rounds only the result. Flax rounds the activations and the
  running statistics first, which near a large mean removes all information. A
  custom `promote_dtype` is called as in Flax.
- A mask may have any type that converts to booleans. Activations under a mask
  take no part in the statistics, and their results are 0. Flax normalizes the
  masked activations too.
- Over devices, every example has the same weight, and a device may have no
  example. Flax gives every device the same weight.
- A batch with all examples masked, or with moments that are not finite, leaves
  the running statistics unchanged.
- In training, `BatchNorm` refuses an array without activations.
- Activations must be real floating-point numbers. Complex activations are
  refused: give real and imaginary parts as features. Flax centres complex
  activations and divides by the root of `E |x - E x|²`.
"""

from bn_research.layers.nnx.batch_norm import BatchNorm
from bn_research.layers.nnx.norm import Norm
from bn_research.layers.nnx.per_example import (
  GroupNorm,
  InstanceNorm,
  LayerNorm,
  RMSNorm,
)
from bn_research.layers.nnx.whitened_patches import Fitted, WhitenedPatches

__all__ = [
  'BatchNorm',
  'Fitted',
  'GroupNorm',
  'InstanceNorm',
  'LayerNorm',
  'Norm',
  'RMSNorm',
  'WhitenedPatches',
]
