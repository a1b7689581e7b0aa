"""A fixed reference batch, and each example with it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bn_research.norms.axes import Map, Scope
from bn_research.norms.statistics.collectives import Devices
from bn_research.norms.statistics.moments import Moments, Shape, joined
from bn_research.norms.statistics.views import View


@dataclasses.dataclass(frozen=True)
class Reference(Scope):
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

  def objection(self, normalization: Any) -> str | None:
    """Returns what does not fit: statistics that do not merge."""
    map_ = normalization.map
    if not map_.merges:
      return (
        f'{self} merges the statistics of the reference batch with those of '
        f'each example, and the statistics of {map_} do not merge; take '
        'Batch() for the scope, or give the map a merge.'
      )
    return None

  def features(self, shape: Shape) -> Shape:
    """Returns the size of the last axis."""
    return shape[-1:]

  def expand(self, leaf: jax.Array, shape: Shape) -> jax.Array:
    """Lets an array of the shape of the features broadcast."""
    return leaf.reshape((1,) * (len(shape) - 1) + leaf.shape)

  def view(self, x: jax.Array, map_: Map) -> View:
    """Returns the view: positions pooled, rows apart."""
    return View(x.shape, tuple(range(1, x.ndim - 1)))

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map_: Map
  ) -> tuple[Moments, Moments]:
    """Returns moments of the reference with each row; and of the reference."""
    if x.shape[0] < self.size:
      raise ValueError(
        f'x has {x.shape[0]} rows, fewer than the reference batch of '
        f'size={self.size}; put the reference rows first in every batch.'
      )
    rows = map_.estimate(x, mask, view.axes, Devices())
    # Added, not broadcast, and selected, not sliced: rows may be spread over
    # devices, and all of this must be spread as they are.
    rows = rows._replace(count=jnp.zeros_like(rows.mean) + rows.count)
    only_reference = self._select(rows, jax.tree.map(jnp.zeros_like, rows))
    reference = map_.merge(only_reference, 0)
    repeated = jax.tree.map(
      lambda leaf, like: jnp.zeros_like(like) + leaf, reference, rows
    )
    return self._select(repeated, joined(repeated, rows, map_.merge)), reference

  def _select(self, of_reference: Moments, of_others: Moments) -> Moments:
    """Takes reference rows from the first and the others from the second."""

    def select(a, b):
      is_reference = jnp.arange(a.shape[0]) < self.size
      return jnp.where(is_reference.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, of_reference, of_others)
