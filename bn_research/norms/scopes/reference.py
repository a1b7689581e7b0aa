"""The reference scope: each example together with a fixed batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bn_research.norms.axes import Map, Scope
from bn_research.norms.statistics.collectives import ONE_DEVICE
from bn_research.norms.statistics.moments import Moments, Shape, joined
from bn_research.norms.statistics.views import View


@dataclasses.dataclass(frozen=True)
class Reference(Scope):
  """Each example with a reference batch, feature by feature.

  The caller chooses the reference batch once, and puts the reference rows first
  in every batch. The moments that normalize an example are the moments of the
  reference batch and the example. The result for an example therefore does not
  depend on the rest of the batch.

  Attributes:
    size: Number of rows of the reference batch.

  Source: Salimans et al. (2016), Section 3.5.
  """

  size: int

  def __post_init__(self):
    if self.size < 1:
      raise ValueError(f'size={self.size} must be at least 1 reference row.')

  def objection(self, normalization: Any) -> str | None:
    """Returns the sentence on a map whose statistics do not merge."""
    map_ = normalization.map
    if not map_.merges:
      return (
        f'{self} merges the statistics of the reference batch and of each '
        f'example, and the statistics of {map_} do not merge; take '
        'Batch() for the scope, or give the map a merge.'
      )
    return None

  def over_devices(self, axis_name: str) -> Scope:
    """Raises a ValueError, because a single device has the reference rows."""
    raise ValueError(
      f'{self} takes the first rows of the batch that the program sees, and'
      f' devices along {axis_name!r} see a part each; use jit over a mesh.'
    )

  def features(self, shape: Shape) -> Shape:
    """Returns the size of the last axis."""
    return shape[-1:]

  def expand(self, leaf: jax.Array, shape: Shape) -> jax.Array:
    """Reshapes an array of the shape of the features, to broadcast."""
    return leaf.reshape((1,) * (len(shape) - 1) + leaf.shape)

  def view(self, x: jax.Array, map_: Map) -> View:
    """Returns the view: positions are pooled, rows are not."""
    return View(x.shape, tuple(range(1, x.ndim - 1)))

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map_: Map
  ) -> tuple[Moments, Moments]:
    """Returns the moments of the reference with each row, and without."""
    # A symbolic number of rows, as `jax.export` gives, may not compare.
    if isinstance(x.shape[0], int) and x.shape[0] < self.size:
      raise ValueError(
        f'x has {x.shape[0]} rows, fewer than the reference batch of '
        f'size={self.size}; put the reference rows first in every batch.'
      )
    rows = map_.estimate(x, mask, view.axes, ONE_DEVICE)
    # Devices may hold the rows in parts. An addition and a select keep the
    # sharding of the rows, but a broadcast and a slice would not.
    rows = rows._replace(count=jnp.zeros_like(rows.mean) + rows.count)
    only_reference = self._select(rows, jax.tree.map(jnp.zeros_like, rows))
    reference = map_.merge(only_reference, 0)
    repeated = jax.tree.map(
      lambda leaf, like: jnp.zeros_like(like) + leaf, reference, rows
    )
    return self._select(repeated, joined(repeated, rows, map_.merge)), reference

  def _select(self, of_reference: Moments, of_others: Moments) -> Moments:
    """Takes the reference rows of one tree and the further rows of another."""

    def select(a, b):
      is_reference = jnp.arange(a.shape[0]) < self.size
      return jnp.where(is_reference.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, of_reference, of_others)
