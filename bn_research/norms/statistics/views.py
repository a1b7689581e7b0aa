"""Views of activations for a scope: an axis cut in two, and pooled axes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.moments import Axes, Shape


@dataclasses.dataclass(frozen=True)
class View:
  """A reversible reshape of activations, and the axes to pool.

  Attributes:
    shape: Shape of the activations before the cut.
    axes: Axes to pool, as numbered after the cut.
    cut: None, or a pair: the axis to cut, and the size of the outer part.
    outer_last: Whether the outer part moves behind the inner part. Only a cut
      of the last axis allows this order.
    padding: Number of rows of zeros that fill the last group, after a cut of
      axis 0.
    is_whole: Whether each device of an Explicit mesh needs all activations.
  """

  shape: Shape
  axes: Axes
  cut: tuple[int, int] | None = None
  outer_last: bool = False
  padding: int = 0
  is_whole: bool = False

  def split(self, x: Any) -> Any:
    """Cuts an array that broadcasts against the activations; keeps None."""
    if x is None:
      return None
    if x.ndim < len(self.shape):
      x = x.reshape((1,) * (len(self.shape) - x.ndim) + x.shape)
    if self.is_whole:
      x = meshes.whole(x)
    if self.cut is None:
      return x
    axis, outer = self.cut
    # An array that broadcasts along the axis broadcasts along both parts.
    if x.shape[axis] == 1 and self.shape[axis] != 1:
      return jnp.expand_dims(x, axis)
    if axis == 0:
      return meshes.split_rows(self._padded(x), outer)
    inner = x.shape[axis] // outer
    x = meshes.whole_features(x)
    x = x.reshape((*x.shape[:axis], outer, inner, *x.shape[axis + 1 :]))
    return jnp.swapaxes(x, -1, -2) if self.outer_last else x

  def split_call(
    self,
    x: jax.Array,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
  ) -> tuple[jax.Array, jax.Array | None, jax.Array | None, jax.Array | None]:
    """Cuts the arrays of a call, and gives all arrays the same number of axes.

    With padding, the mask in the result hides the padding.

    Args:
      x: Activations of the shape of the view.
      mask: None, or boolean and broadcastable against `x`.
      scale: None, or broadcastable against `x`.
      bias: None, or broadcastable against `x`.

    Returns:
      The arrays in the same order; None stays None.
    """
    if self.cut is not None or self.is_whole:
      mask = self.split_mask(mask)
      return self.split(x), mask, self.split(scale), self.split(bias)
    # Without a cut only the number of axes can differ. These branches repeat
    # `split` inline, because calls outside of jit feel the overhead.
    ndim = x.ndim
    if mask is not None and mask.ndim < ndim:
      mask = mask.reshape((1,) * (ndim - mask.ndim) + mask.shape)
    if scale is not None and scale.ndim < ndim:
      scale = scale.reshape((1,) * (ndim - scale.ndim) + scale.shape)
    if bias is not None and bias.ndim < ndim:
      bias = bias.reshape((1,) * (ndim - bias.ndim) + bias.shape)
    return x, mask, scale, bias

  def split_mask(self, mask: jax.Array | None) -> jax.Array | None:
    """Cuts a mask, and makes the mask hide the padding."""
    cut = self.split(mask)
    if self.cut is None or not self.padding:
      return cut
    rows = self.shape[0]
    real = jnp.arange(rows + self.padding) < rows
    real = real.reshape((self.cut[1], -1) + (1,) * (len(self.shape) - 1))
    return real if cut is None else cut & real

  def join(self, x: jax.Array) -> jax.Array:
    """Joins the axis that `split` has cut, and removes the padding."""
    if self.cut is None:
      return x
    if self.cut[0] == 0:
      rows = meshes.join_rows(x)
      return rows[: self.shape[0]] if self.padding else rows
    x = jnp.swapaxes(x, -1, -2) if self.outer_last else x
    return x.reshape(self.shape)

  def spread(self, leaf: jax.Array) -> jax.Array:
    """Reshapes an array from broadcasting against the view to the activations.

    Args:
      leaf: An array that broadcasts against the split activations.

    Returns:
      An array that broadcasts against the activations.
    """
    if self.cut is None:
      return leaf
    axis, outer = self.cut
    leaf = jnp.swapaxes(leaf, -1, -2) if self.outer_last else leaf
    if leaf.shape[axis : axis + 2] == (1, 1):
      return leaf.squeeze(axis)
    inner = (self.shape[axis] + self.padding) // outer
    both = (*leaf.shape[:axis], outer, inner, *leaf.shape[axis + 2 :])
    # One part of the cut may have size 1, and only full parts can be joined.
    leaf = jnp.broadcast_to(leaf, both)
    merged = (*leaf.shape[:axis], outer * inner, *leaf.shape[axis + 2 :])
    leaf = leaf.reshape(merged)
    return leaf[: self.shape[0]] if self.padding else leaf

  def _padded(self, x: jax.Array) -> jax.Array:
    if not self.padding:
      return x
    return jnp.pad(x, ((0, self.padding),) + ((0, 0),) * (x.ndim - 1))


def as_tuples(value: Any) -> Any:
  """Converts lists, also nested lists, to tuples.

  A static value of jit must be hashable.
  """
  is_list = isinstance(value, Sequence) and not isinstance(value, str)
  return tuple(map(as_tuples, value)) if is_list else value


# Every call outside of jit asks for the axes again, mostly for the same axes.
@functools.lru_cache(maxsize=1024)
def canonical_axes(axes: int | Axes, ndim: int) -> Axes:
  """Returns `axes` as ascending, non-negative, distinct integers.

  Args:
    axes: One axis or several axes; negative numbers count from the end.
    ndim: The number of axes of the array.

  Raises:
    ValueError: If an axis does not exist, or if two numbers name one axis.
  """
  axes = (axes,) if isinstance(axes, int) else tuple(axes)
  for axis in axes:
    if not -ndim <= axis < ndim:
      raise ValueError(
        f'axis {axis} does not exist in an array of {ndim} axes; use one of '
        f'{-ndim}..{ndim - 1}.'
      )
  canonical = sorted(set(map(ndim.__rmod__, axes)))
  if len(canonical) != len(axes):
    raise ValueError(
      f'axes {axes} name one of the {ndim} axes twice; name each axis once.'
    )
  return tuple(canonical)
