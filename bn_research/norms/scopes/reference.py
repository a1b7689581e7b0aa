"""A fixed reference batch, and each example with it."""

import dataclasses

import jax
import jax.numpy as jnp

from bn_research.norms.collectives import Devices
from bn_research.norms.moments import Moments, Shape
from bn_research.norms.population import joined
from bn_research.norms.scopes.view import Estimator, View


@dataclasses.dataclass(frozen=True)
class Reference:
  """Each example with a reference batch, feature by feature.

  The first rows of every batch are the reference batch, chosen once and given
  again with each call. An example is normalized by the moments of the reference
  batch and itself, so that what it becomes does not depend on its neighbours.

  Attributes:
    size: Rows of the reference batch.

  Source: Salimans et al. (2016), Section 3.5.
  """

  size: int

  def __post_init__(self):
    if self.size < 1:
      raise ValueError(f'size={self.size} must be at least 1 reference row.')

  def features(self, shape: Shape) -> Shape:
    """Returns the size of the last axis."""
    return shape[-1:]

  def expand(self, leaf: jax.Array, shape: Shape) -> jax.Array:
    """Lets an array of the shape of the features broadcast."""
    return leaf.reshape((1,) * (len(shape) - 1) + leaf.shape)

  def view(self, x: jax.Array, map: Estimator) -> View:
    """Returns the view: positions pooled, rows apart."""
    if x.shape[0] < self.size:
      raise ValueError(
        f'x has {x.shape[0]} rows, fewer than the reference batch of '
        f'size={self.size}; put the reference rows first in every batch.'
      )
    return View(x.shape, tuple(range(1, x.ndim - 1)))

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map: Estimator
  ) -> tuple[Moments, Moments]:
    """Returns moments of the reference with each row; and of the reference."""
    rows = map.estimate(x, mask, view.axes, Devices())
    count = jnp.broadcast_to(rows.count, rows.mean.shape)
    rows = rows._replace(count=count)
    reference = jax.tree.map(lambda leaf: leaf[: self.size], rows).merged(0)
    repeated = jax.tree.map(
      lambda leaf, like: jnp.broadcast_to(leaf, like.shape), reference, rows
    )
    is_reference = jnp.arange(x.shape[0]) < self.size
    is_reference = is_reference.reshape((-1,) + (1,) * (x.ndim - 1))
    each = jax.tree.map(
      lambda shared, own: jnp.where(is_reference, shared, own),
      repeated,
      joined(repeated, rows),
    )
    return each, reference
