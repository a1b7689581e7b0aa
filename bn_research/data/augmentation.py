"""Random changes of the training images, inside the training step.

`config.data.augment` is a section of parts. A key is the name of a part in
`PARTS`, unless the option `name` has a different name:

    config.data.augment.pad_crop.padding = 4

A part changes stored images, uint8, before the conversion to inputs of the
network. Each draw is a function of a key and of the place of the example in the
batch. The number of devices therefore does not change a draw.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bn_research import errors, ranges, registry

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def pad_crop(
  images: np.ndarray, padding: int = 4, fill: str = 'mean'
) -> Augment:
  """Pads each side, and crops a random window of the size of the image.

  The upper left corner of the window is uniform over the (2 padding + 1)²
  places.

  Args:
    images: (num_examples, height, width, channels) uint8, the training split.
    padding: The number of pixels on each side.
    fill: The content of the padding: the `mean` of each channel over the
      training split, rounded to a whole grey level; black pixels for `zeros`;
      or the mirrored image without a copy of the edge for `reflect`. Papers pad
      normalized images with zeros, which is the mean of the stored images.

  Raises:
    ValueError: If `padding` is negative or at least a side of the image, where
      a window without a pixel of the image would be possible; or if `fill` is
      unknown.

  Source: He et al., Deep Residual Learning for Image Recognition, 2016, Section
  4.2.
  """
  ranges.whole(0, min(images.shape[1:3]) - 1, padding=padding)
  _check_fill(fill, ('mean', 'reflect', 'zeros'))
  colour = _colour(images, fill)

  def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)
    width = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    if fill == 'reflect':
      padded = jnp.pad(images, width, mode='reflect')
    else:
      # `jnp.pad` has a single constant for all channels. Around the difference
      # to the colour, each constant is 0. The sum is exact, modulo 256.
      padded = jnp.pad(images - colour, width) + colour
    # On a CPU, a slice of each example is ten times as fast as a selection
    # among all shifted copies of the batch.
    return jax.vmap(functools.partial(_window, shape=images.shape[1:]))(
      padded, corners
    )

  return augment


def flip() -> Augment:
  """Mirrors an image from left to right with probability 1/2.

  Source: He et al., Deep Residual Learning for Image Recognition, 2016, Section
  4.2.
  """

  def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    is_flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(is_flipped, images[:, :, ::-1], images)

  return augment


def cutout(images: np.ndarray, size: int, fill: str = 'mean') -> Augment:
  """Covers a square of each image.

  The centre is uniform over all pixels, and the image clips the square. For a
  centre c, the square has the rows c - ⌊size / 2⌋ to c - ⌊size / 2⌋ + size - 1,
  and in the same way the columns.

  Args:
    images: (num_examples, height, width, channels) uint8, the training split.
    size: The side of the square, in pixels.
    fill: The content of the square: the `mean` of each channel over the
      training split, rounded to a whole grey level, or black pixels for
      `zeros`.

  Raises:
    ValueError: If `size` is not in 1 to the smaller side of an image, or if
      `fill` is unknown.

  Source: DeVries and Taylor, Improved Regularization of Convolutional Neural
  Networks with Cutout, 2017, Section 3.
  """
  height, width = images.shape[1:3]
  ranges.whole(1, min(height, width), size=size)
  _check_fill(fill, ('mean', 'zeros'))
  colour = _colour(images, fill)

  def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    sides = jnp.array([height, width])
    centres = jax.random.randint(key, (len(images), 2), 0, sides)
    first = (centres - size // 2)[:, None]
    rows, columns = (
      (first[..., axis] <= jnp.arange(side))
      & (jnp.arange(side) < first[..., axis] + size)
      for axis, side in enumerate((height, width))
    )
    is_covered = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(is_covered, colour, images)

  return augment


PARTS: dict[str, Callable[..., Augment]] = {
  'pad_crop': pad_crop,
  'flip': flip,
  'cutout': cutout,
}
"""Factories of the parts by name, in the order of their use on an image."""


def create(config: Mapping[str, Any], images: np.ndarray) -> Augment | None:
  """Creates the augmentation of `config.data.augment`.

  The parts of this package come in the order of `PARTS`. The parts of the user
  follow in the order of their keys.

  Args:
    config: The section `config.data`. `augment` is a section of parts, by any
      key. A part has a name in `PARTS` or a name `module:attribute`, and
      options. A factory of the user gets the options, and `images` if the
      factory has this argument, and returns a function (key, images) -> images.
    images: (num_examples, height, width, channels) uint8, the training split.

  Returns:
    None without a part, or a function for use inside `jit`: from a random key
    and images, (batch, height, width, channels) uint8, to images of the same
    shape and type. The draws of an example depend on the key and on the place
    in the batch.

  Raises:
    UserError: If a name or an option is unknown, if a value does not fit the
      images, or if a function of the user returns no such images.
  """
  sections = config.get('augment')
  if sections is None:
    return None
  if not registry.is_section(sections):
    raise errors.UserError(
      f'config.data.augment={sections!r} is no section; give'
      f' config.data.augment.KEY.name={sections}'
    )
  parts = {
    key: _part(key, section, images)
    for key, section in sorted(sections.items(), key=_place)
    if section is not None
  }
  if not parts:
    return None
  # A new part leaves the draws of the other parts as they are.
  numbers = {key: zlib.crc32(key.encode()) for key in parts}

  def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    for name, part in parts.items():
      images = part(jax.random.fold_in(key, numbers[name]), images)
    return images

  return augment


def _part(key: str, section: Any, images: np.ndarray) -> Augment:
  where = f'config.data.augment.{key}'
  name, options = _split(key, section)
  factory = registry.find(where, PARTS, name)
  part = registry.call(where, factory, name, options, images=images)
  with registry.mistakes_in(where):
    _check(name, part, images.shape[1:])
  return part


def _split(key: str, section: Any) -> tuple[Any, dict[str, Any]]:
  """Returns the name and the options of a part; the name is KEY by default."""
  name, options = registry.split(section)
  return key if name is None else name, options


def _place(item: tuple[str, Any]) -> tuple[int, str]:
  """Returns the place of a part among all parts, for a sort."""
  name, _ = _split(*item)
  order = [*PARTS]
  return (order.index(name) if name in order else len(order)), item[0]


def _check(name: Any, part: Any, shape: Sequence[int]) -> None:
  """Raises a ValueError for a part that is no function of images."""
  if not callable(part):
    raise ValueError(
      f'{name!r} returned a {type(part).__name__}; return a function (key,'
      ' images) -> images'
    )
  batch = jax.ShapeDtypeStruct((2, *shape), jnp.uint8)
  found = jax.eval_shape(part, jax.random.key(0), batch)
  got = getattr(found, 'shape', None), getattr(found, 'dtype', type(found))
  if got != (batch.shape, batch.dtype):
    raise ValueError(
      f'the function of {name!r} turns images of shape {batch.shape} and type'
      f' uint8 into {got[1]} of shape {got[0]}; return uint8 of the same shape'
    )


def _check_fill(fill: str, choices: Sequence[str]) -> None:
  if fill not in choices:
    raise ValueError(f'fill={fill!r}; choose {", ".join(choices)}')


def _colour(images: np.ndarray, fill: str) -> np.ndarray:
  """Returns the colour of a fill, uint8 (channels,)."""
  if fill != 'mean':
    return np.zeros(images.shape[3], np.uint8)
  # NumPy adds whole images faster than it adds the pixels of a channel.
  total = images.sum(0, dtype=np.uint64).sum((0, 1))
  return np.rint(total / images[..., 0].size).astype(np.uint8)


def _window(
  image: jax.Array, corner: jax.Array, *, shape: Sequence[int]
) -> jax.Array:
  return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), shape)
