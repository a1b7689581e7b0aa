"""How a scope sees activations: what every choice of the axis has in common."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.collectives import Devices
from bn_research.norms.statistics.moments import Axes, Moments, Shape


@dataclasses.dataclass(frozen=True)
class View:
  """How a scope looks at activations: one axis cut in two, some axes pooled.

  Attributes:
    shape: Shape of the activations.
    axes: Axes pooled in the pass over the activations, counted in the view.
    cut: None, or the axis that is cut, and the size of its outer part.
    outer_last: Whether the outer part, of a last axis that is cut, comes last.
  """

  shape: Shape
  axes: Axes
  cut: tuple[int, int] | None = None
  outer_last: bool = False

  def split(self, x: jax.Array) -> jax.Array:
    """Cuts anything that broadcasts against the activations."""
    if x.ndim < len(self.shape):
      x = x.reshape((1,) * (len(self.shape) - x.ndim) + x.shape)
    if self.cut is None:
      return x
    axis, outer = self.cut
    if x.shape[axis] == 1:
      return jnp.expand_dims(x, axis)
    if axis == 0:
      return meshes.split_rows(x, outer)
    inner = x.shape[axis] // outer
    x = meshes.whole_features(x)
    x = x.reshape((*x.shape[:axis], outer, inner, *x.shape[axis + 1 :]))
    return jnp.swapaxes(x, -1, -2) if self.outer_last else x

  def join(self, x: jax.Array) -> jax.Array:
    """Undoes `split`."""
    if self.cut is not None and self.cut[0] == 0:
      return meshes.join_rows(x)
    x = jnp.swapaxes(x, -1, -2) if self.outer_last else x
    return x.reshape(self.shape)

  def spread(self, leaf: jax.Array) -> jax.Array:
    """Lets an array that broadcasts against the view do so uncut."""
    if self.cut is None:
      return leaf
    axis, outer = self.cut
    leaf = jnp.swapaxes(leaf, -1, -2) if self.outer_last else leaf
    if leaf.shape[axis : axis + 2] == (1, 1):
      return leaf.squeeze(axis)
    inner = self.shape[axis] // outer
    both = (*leaf.shape[:axis], outer, inner, *leaf.shape[axis + 2 :])
    leaf = jnp.broadcast_to(leaf, both)
    merged = (*leaf.shape[:axis], outer * inner, *leaf.shape[axis + 2 :])
    return leaf.reshape(merged)


class Estimator(Protocol):
  """The part of a map that a scope calls."""

  @property
  def centre(self) -> bool:
    """Whether moments are about the mean, or (False) about zero."""
    ...

  @property
  def joint(self) -> bool:
    """Whether features are taken together, in a covariance."""
    ...

  def estimate(
    self,
    x: jax.Array,
    mask: jax.Array | None,
    axes: Axes,
    devices: Devices,
    groups: int | None = None,
  ) -> Moments:
    """Estimates the moments that the map needs, as `moments.estimate` does."""
    ...


class Scope(Protocol):
  """Which activations share statistics."""

  def features(self, shape: Shape) -> Shape:
    """Returns the shape of what is remembered of such activations."""
    ...

  def expand(self, leaf: jax.Array, shape: Shape) -> jax.Array:
    """Lets a remembered array broadcast against such activations."""
    ...

  def view(self, x: jax.Array, map: Estimator) -> View:
    """Returns the view of these activations that suits the map."""
    ...

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map: Estimator
  ) -> tuple[Moments, Moments]:
    """Returns moments that normalize the view, and those of all activations."""
    ...


def as_tuples(value: Any) -> Any:
  """Makes tuples of lists, also in lists: what is static must be hashable."""
  is_list = isinstance(value, Sequence) and not isinstance(value, str)
  return tuple(map(as_tuples, value)) if is_list else value


def canonical_axes(axes: int | Axes, ndim: int) -> Axes:
  """Returns `axes` as ascending, non-negative, distinct integers.

  Raises:
    ValueError: If an axis does not exist or is named twice.
  """
  axes = (axes,) if isinstance(axes, int) else tuple(axes)
  for axis in axes:
    if not -ndim <= axis < ndim:
      raise ValueError(
        f'axis {axis} does not exist in an array of {ndim} axes; use one of '
        f'{-ndim}..{ndim - 1}.'
      )
  canonical = sorted({axis % ndim for axis in axes})
  if len(canonical) != len(axes):
    raise ValueError(
      f'axes {axes} name one of the {ndim} axes twice; name each once.'
    )
  return tuple(canonical)
