"""Normalizations as flax.nnx modules: Flax's own layers, and any other.

A model is switched by its import:

  >>> import jax
  >>> from flax import nnx
  >>> from bn_research.layers import nnx as layers
  >>> layer = layers.BatchNorm(6, momentum=0.9, rngs=nnx.Rngs(0))
  >>> x = jax.random.normal(jax.random.key(0), (5, 6))
  >>> y = layer(x)  # the batch's statistics; the running ones learn
  >>> layer.eval()
  >>> y = layer(x)  # the running ones

What Flax does not have is a `Norm`:

  >>> from bn_research import norms
  >>> ghost = norms.batch_norm(group_size=2)
  >>> layer = layers.Norm(ghost, 6, rngs=nnx.Rngs(0))
  >>> layer(x).shape
  (5, 6)

These layers are subclasses of Flax's, so that whatever looks for
`nnx.BatchNorm` finds them, and they take all of Flax's arguments. They differ
where Flax is wrong, and in saying sooner what is wrong with a call:

- The variance is always a stable one, with one collective over named axes:
  `use_fast_variance` has no effect.
- With `dtype`, only the result is rounded to it. Flax rounds the activations
  and the running statistics first, which near a large mean leaves nothing of
  them. A `promote_dtype` of one's own is called as Flax would call it.
- A mask may be of any type that `bool` takes. What it hides takes no part and
  comes out as 0, where Flax normalizes it along. Over devices, examples count
  alike, not devices, and a device may have none.
- A batch with no example, or with moments that are not finite, leaves the
  running statistics as they are.
- Activations must be real floating numbers, of which there are some. Complex
  ones, which Flax centres and divides by the root of E |x - E x|², are refused:
  give real and imaginary parts as features.
"""

from bn_research.layers.nnx.batch_norm import BatchNorm
from bn_research.layers.nnx.norm import Norm
from bn_research.layers.nnx.per_example import (
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
