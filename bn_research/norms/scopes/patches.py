"""The patch scope: all patches under the kernel of a convolution."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bn_research.norms.axes import Map, Scope
from bn_research.norms.scopes.batch import Batch
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.collectives import (
  AxisNames,
  IndexGroups,
  require_names,
)
from bn_research.norms.statistics.moments import Moments, Shape
from bn_research.norms.statistics.views import View, as_tuples

PerAxis = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Patches(Scope):
  """All patches of the mini-batch: the inputs of a convolution.

  A convolution is a dense layer on patches. A patch has the d =
  prod(kernel_size) · channels numbers under one position of the kernel, in the
  order of a kernel (*kernel_size, channels, features). The numbers of a patch
  are the features, and all positions of all examples are the rows. Padding is a
  part of the patches.

  Patches overlap, and normalized patches cannot be joined to activations again.
  The scope therefore gives moments only: `Normalization.measure` and `learn`
  estimate the moments, and `fold_into_next` makes the kernel that normalizes
  each patch before a convolution. The patches take prod(kernel_size) times the
  memory of the activations.

  A mask hides each patch with a hidden activation.

  Attributes:
    kernel_size: Size of the kernel along each axis of space.
    strides: Stride along each axis of space, or one stride for all axes.
    padding: 'VALID', 'SAME', 'SAME_LOWER', or for each axis of space a pair of
      the zeros before and after.
    input_dilation: Distance of neighbouring activations along each axis of
      space, with zeros between them, or one distance for all axes. The padding
      then must be pairs, or 'VALID'.
    kernel_dilation: Distance of neighbouring activations of a patch along each
      axis of space, or one distance for all axes.
    axis_name: Names of the mesh axes over which the examples are spread, as in
      `Batch`.
    axis_index_groups: Groups of device indices, as in `Batch`.

  Source: Coates and Ng (2012), for whitened patches of images; Grosse and
  Martens (2016), for the patches under a convolution.
  """

  joins: ClassVar[bool] = False

  kernel_size: tuple[int, ...]
  strides: PerAxis = 1
  padding: str | tuple[tuple[int, int], ...] = 'VALID'
  input_dilation: PerAxis = 1
  kernel_dilation: PerAxis = 1
  axis_name: AxisNames = None
  axis_index_groups: IndexGroups = None

  def __post_init__(self):
    # Configs give lists. Tuples are hashable, as a static value of jit must be.
    for field in dataclasses.fields(self):
      value = as_tuples(getattr(self, field.name))
      object.__setattr__(self, field.name, value)
    if isinstance(self.padding, str):  # JAX takes both cases
      object.__setattr__(self, 'padding', self.padding.upper())
    require_names(self.axis_name, self.axis_index_groups)
    if not isinstance(self.kernel_size, tuple):
      raise ValueError(
        f'kernel_size={self.kernel_size!r} must have a size for each axis of '
        'space: (3, 3) for images.'
      )
    for name in ('kernel_size', 'strides', 'input_dilation', 'kernel_dilation'):
      self._require_positive(name)
    self._require_padding()

  def _require_positive(self, name: str) -> None:
    value = getattr(self, name)
    sizes = self.per_axis(value)
    is_whole = all(isinstance(size, int) and size >= 1 for size in sizes)
    if not (sizes and is_whole and len(sizes) == len(self.kernel_size)):
      raise ValueError(
        f'{name}={value!r} must be positive whole numbers, one for each '
        f'axis of kernel_size={self.kernel_size}.'
      )

  def _require_padding(self) -> None:
    padding: Any = self.padding
    if isinstance(padding, str):
      known = ('VALID', 'SAME', 'SAME_LOWER')
      dilates = max(self.per_axis(self.input_dilation)) > 1
      if padding not in (known[:1] if dilates else known):
        raise ValueError(
          f'padding={padding!r} with input_dilation={self.input_dilation} must '
          "be 'VALID' or pairs of zeros, and without input_dilation may be "
          "'SAME' or 'SAME_LOWER'."
        )
    elif not (
      isinstance(padding, tuple)
      and len(padding) == len(self.kernel_size)
      and all(isinstance(p, tuple) and len(p) == 2 for p in padding)
    ):
      raise ValueError(
        f'padding={padding!r} must have a pair (before, after) for each axis '
        f'of kernel_size={self.kernel_size}.'
      )

  def over_devices(self, axis_name: str) -> 'Patches':
    """Returns the scope with a name of devices, unless it has a name."""
    if self.axis_name is not None:
      return self
    return dataclasses.replace(self, axis_name=axis_name)

  def features(self, shape: Shape) -> Shape:
    """Returns the number of numbers in a patch, (d,)."""
    self._require_space(shape)
    return (math.prod(self.kernel_size) * shape[-1],)

  def expand(self, leaf: jax.Array, shape: Shape) -> jax.Array:
    """Reshapes an array of the shape of the features, for the patches."""
    return leaf.reshape((1,) * (len(shape) - 1) + leaf.shape)

  def view(self, x: jax.Array, map_: Map) -> View:
    """Returns the view that changes nothing: `moments` makes the patches."""
    self._require_space(x.shape)
    return View(x.shape, ())

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map_: Map
  ) -> tuple[Moments, Moments]:
    """Returns the moments of all patches, as both results.

    The arrays broadcast against the result of `extract`.
    """
    patches = self.extract(x)
    if mask is not None:
      kept = self.extract(jnp.broadcast_to(mask, x.shape), True)
      mask = kept.all(-1, keepdims=True)
    over = Batch(
      axis_name=self.axis_name, axis_index_groups=self.axis_index_groups
    )
    rows = over.view(patches, map_)
    _, whole = over.moments(
      rows, rows.split(patches), rows.split_mask(mask), map_
    )
    whole = jax.tree.map(rows.spread, whole)
    return whole, whole

  def per_axis(self, value: PerAxis) -> tuple[int, ...]:
    """Returns a number for each axis of space, from one number or several."""
    if isinstance(value, tuple):
      return value
    return (value,) * len(self.kernel_size)

  def extract(self, x: jax.Array, fill: Any = 0) -> jax.Array:
    """Returns the patches of activations.

    Args:
      x: Activations (batch, *space, channels), of any dtype.
      fill: The value of the padding, and between dilated activations.

    Returns:
      (batch, *positions, d), of the dtype of `x`.

    Raises:
      ValueError: If the number of axes does not fit, or if the activations are
        smaller than a patch.
    """
    self._require_space(x.shape)
    x = meshes.whole_rows(x)
    distances, padding = self.per_axis(self.input_dilation), self._pads(x)
    filling = [
      (before, after, distance - 1)
      for (before, after), distance in zip(padding, distances, strict=True)
    ]
    none = (0, 0, 0)
    padded = lax.pad(x, jnp.asarray(fill, x.dtype), [none, *filling, none])
    positions = self._positions(padded.shape[1:-1])
    if min(positions) < 1:
      raise ValueError(
        f'x of shape {x.shape} is smaller than a patch of {self}; give larger '
        'activations, a smaller kernel_size, or padding.'
      )
    steps = self.per_axis(self.kernel_dilation)
    strides = self.per_axis(self.strides)
    # Slices copy exactly. A product with a kernel of zeros and ones would make
    # NaN of infinity, and is rounded on some accelerators.
    parts = []
    for place in np.ndindex(*self.kernel_size):
      cuts = [
        slice(at * step, at * step + (count - 1) * stride + 1, stride)
        for at, step, count, stride in zip(
          place, steps, positions, strides, strict=True
        )
      ]
      parts.append(padded[(slice(None), *cuts)])
    return jnp.concatenate(parts, axis=-1)

  def _extents(self) -> list[int]:
    """Returns the extent of a patch, with dilation, along each axis."""
    steps = self.per_axis(self.kernel_dilation)
    return [
      (size - 1) * step + 1
      for size, step in zip(self.kernel_size, steps, strict=True)
    ]

  def _pads(self, x: jax.Array) -> Sequence[tuple[int, int]]:
    if not isinstance(self.padding, str):
      return self.padding
    strides = self.per_axis(self.strides)
    return lax.padtype_to_pads(
      x.shape[1:-1], self._extents(), strides, self.padding
    )

  def _positions(self, space: Shape) -> list[int]:
    """Returns the number of positions of the kernel along each axis."""
    extents, strides = self._extents(), self.per_axis(self.strides)
    return [
      (size - extent) // stride + 1
      for size, extent, stride in zip(space, extents, strides, strict=True)
    ]

  def _require_space(self, shape: Shape) -> None:
    if len(shape) != len(self.kernel_size) + 2:
      raise ValueError(
        f'{self} needs activations (batch, {len(self.kernel_size)} axes of '
        f'space, channels), and the shape is {tuple(shape)}; give kernel_size '
        'a number for each axis of space.'
      )
