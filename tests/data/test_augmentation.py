import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bn_research import data, errors

KEY = jax.random.key(5)
ALL = {'pad_crop': {'padding': 2}, 'flip': 'flip', 'cutout': {'size': 3}}


def noise(count=8, shape=(6, 5, 3)):
  """Images without two equal windows; the channels differ in their means."""
  rng = np.random.default_rng(0)
  low = 60 * np.arange(shape[2], dtype=np.uint8)
  return rng.integers(0, 100, (count, *shape), np.uint8) + low


def augmented(sections, images, key=KEY, stored=None):
  """Augments images; `stored` are the training images of another split."""
  stored = images if stored is None else stored
  augment = data.augmentation.create({'augment': sections}, stored)
  found = jax.jit(augment)(key, images)
  assert (found.shape, found.dtype) == (images.shape, jnp.uint8)
  return np.asarray(found)


def mean_of(images):
  sums = [int(images[..., c].astype(int).sum()) for c in range(3)]
  return np.array([round(s / images[..., 0].size) for s in sums], np.uint8)


@pytest.mark.parametrize(
  'config', [{}, {'augment': None}, {'augment': {}}, {'augment': {'x': None}}]
)
def test_nothing_is_none(config):
  assert data.augmentation.create(config, noise()) is None


@pytest.mark.parametrize('fill', ['mean', 'zeros', 'reflect'])
@pytest.mark.parametrize('padding', [0, 1, 4])
def test_crops_are_windows_of_the_padded_image(fill, padding):
  images = noise()
  found = augmented({'pad_crop': {'padding': padding, 'fill': fill}}, images)
  width = ((padding, padding), (padding, padding))
  for before, after in zip(images, found, strict=True):
    channels = []
    for c in range(3):
      mode = {'mode': 'reflect'}
      if fill != 'reflect':
        colour = mean_of(images)[c] if fill == 'mean' else 0
        mode = {'constant_values': colour}
      channels.append(np.pad(before[..., c], width, **mode))
    padded = np.stack(channels, -1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, before.shape)
    is_same = (windows == after).all((-3, -2, -1))
    assert is_same.sum() >= 1


def corners(count, padding):
  """The place of a single white pixel in each crop: the corner of a window."""
  side = 2 * padding + 1
  image = np.zeros((count, side, side, 1), np.uint8)
  image[:, padding, padding] = 255
  sections = {'pad_crop': {'padding': padding, 'fill': 'zeros'}}
  return augmented(sections, image).reshape(count, -1).argmax(1)


def chi_squared(outcomes, num_cells):
  counts = np.bincount(outcomes, minlength=num_cells)
  expected = len(outcomes) / num_cells
  assert len(counts) == num_cells
  return ((counts - expected) ** 2 / expected).sum()


def test_every_window_is_equally_likely():
  places = corners(5000, 2)
  assert chi_squared(places, 25) < 51.2  # the 0.1% point of 24 degrees
  # Neighbours in a batch are independent too.
  assert chi_squared(places[::2] * 25 + places[1::2], 625) < 740  # of 624


def test_half_of_the_images_are_flipped():
  images = noise(1000)
  found = augmented({'flip': 'flip'}, images)
  is_same = (found == images).all((1, 2, 3))
  mirrored = images[:, :, ::-1]
  assert (is_same ^ (found == mirrored).all((1, 2, 3))).all()
  assert 430 < is_same.sum() < 570  # 4.4 deviations


def covered(height, width, size, centre):
  """The pixels that the square covers, one by one."""
  first = [c - size // 2 for c in centre]
  return frozenset(
    (y, x)
    for y in range(first[0], first[0] + size)
    for x in range(first[1], first[1] + size)
    if 0 <= y < height and 0 <= x < width
  )


@pytest.mark.parametrize('size', [1, 2, 3, 4])
def test_squares_have_every_centre(size):
  count, height, width = 2000, 5, 4
  images = np.full((count, height, width, 3), 9, np.uint8)
  found = augmented({'cutout': {'size': size, 'fill': 'zeros'}}, images)
  assert set(np.unique(found)) <= {0, 9}
  assert (found.min(-1) == found.max(-1)).all()
  holes = collections.Counter(
    frozenset(map(tuple, np.argwhere(image[..., 0] == 0))) for image in found
  )
  expected = collections.Counter(
    covered(height, width, size, (y, x))
    for y in range(height)
    for x in range(width)
  )
  assert holes.keys() == expected.keys()
  chi = sum(
    (holes[hole] - count * n / 20) ** 2 / (count * n / 20)
    for hole, n in expected.items()
  )
  assert chi < 43.8  # the 0.1% point of 19 degrees of freedom


def test_the_fill_is_the_mean_of_the_training_split():
  images, stored = noise(20), noise(50)[30:]
  found = augmented({'cutout': {'size': 3}}, images, stored=stored)
  changed = (found != images).any(-1)
  assert changed.any((1, 2)).all()
  colours = np.unique(found[changed], axis=0)
  np.testing.assert_array_equal(colours, [mean_of(stored)])


def test_a_key_and_a_place_have_draws_of_their_own():
  images = np.broadcast_to(noise(1), (64, 6, 5, 3))
  first, second, again = (
    augmented(ALL, images, jax.random.key(seed)) for seed in (1, 2, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != second).any((1, 2, 3)).mean() > 0.9
  assert len(np.unique(first, axis=0)) > 30


def test_a_part_leaves_the_draws_of_the_others_alone():
  images = noise()
  cropped = augmented({'pad_crop': ALL['pad_crop']}, images)
  both = augmented({'flip': 'flip', 'pad_crop': ALL['pad_crop']}, images)
  for one, other in zip(cropped, both, strict=True):
    assert (one == other).all() or (one[:, ::-1] == other).all()


def test_the_order_of_the_keys_is_not_the_order_of_the_parts():
  images = noise()
  first = augmented(ALL, images)
  np.testing.assert_array_equal(
    first, augmented(dict(reversed(ALL.items())), images)
  )
  # The square is not cropped or flipped afterwards.
  square = augmented({'cutout': ALL['cutout']}, images)
  is_covered = (square != images).any(-1, keepdims=True)
  without = augmented({k: ALL[k] for k in ('pad_crop', 'flip')}, images)
  expected = np.where(is_covered, mean_of(images), without)
  np.testing.assert_array_equal(first, expected)


@pytest.mark.parametrize('count', [2, 8])
def test_devices_change_nothing(count):
  images = noise(16)
  augment = data.augmentation.create({'augment': ALL}, images)
  mesh = Mesh(np.array(jax.devices()[:count]), 'data')
  shared = NamedSharding(mesh, PartitionSpec('data'))
  program = jax.jit(augment, out_shardings=shared).lower(
    jax.device_put(KEY, NamedSharding(mesh, PartitionSpec())),
    jax.device_put(images, shared),
  )
  program = program.compile()
  found = program(
    jax.device_put(KEY, NamedSharding(mesh, PartitionSpec())),
    jax.device_put(images, shared),
  )
  np.testing.assert_array_equal(found, augmented(ALL, images))
  # Each device changes its own images, without the images of the others.
  for word in ('all-gather', 'all-reduce', 'all-to-all', 'permute'):
    assert word not in program.as_text()


def test_a_part_of_the_user_comes_last(user_module):
  user_module(
    'my_changes',
    'def brighter(images, by: int):\n'
    '  assert images.shape[1:] == (6, 5, 3)\n'
    '  return lambda key, batch: batch + by\n'
    'def inverse():\n'
    '  return lambda key, batch: 255 - batch\n'
    'def scaled():\n'
    '  return lambda key, batch: batch / 255\n'
    'def nothing():\n'
    '  pass\n',
  )
  images = noise()
  sections = {
    'a': {'name': 'my_changes:brighter', 'by': 7},
    'b': 'my_changes:inverse',
  }
  found = augmented({**sections, 'flip': 'flip'}, images)
  flipped = augmented({'flip': 'flip'}, images)
  np.testing.assert_array_equal(found, 255 - (flipped + np.uint8(7)))
  for name, message in (
    ('scaled', r'turns images of shape \(2, 6, 5, 3\) and .* into float32 of'),
    (
      'nothing',
      "augment.x: 'my_changes:nothing' returned a NoneType; return a fun",
    ),
  ):
    with pytest.raises(errors.UserError, match=message):
      augmented({'x': f'my_changes:{name}'}, images)


@pytest.mark.parametrize(
  ('sections', 'message'),
  [
    (
      'flip',
      r'augment=.flip. is no section; give config.data.augment.KEY.name=',
    ),
    ({'flop': 'flop'}, r"augment.flop='flop' is unknown \(did you mean 'flip'"),
    ({'flip': {'p': 1}}, "augment.flip: 'flip' has no option 'p'; it has none"),
    ({'pad_crop': {'padding': -1}}, 'padding=-1; choose a whole number from 0'),
    ({'pad_crop': {'padding': 1.5}}, 'padding=1.5 is not of type int'),
    ({'pad_crop': {'padding': 5}}, 'choose a whole number from 0 to 4'),
    ({'pad_crop': {'fill': 'white'}}, "fill='white'; choose mean, reflect, z"),
    ({'cutout': {}}, "cutout: 'cutout' needs the option 'size'"),
    ({'cutout': {'size': 0}}, 'size=0; choose a whole number from 1 to 5'),
    ({'cutout': {'size': 6}}, 'size=6; choose a whole number from 1 to 5'),
    ({'cutout': {'size': 2, 'fill': 'reflect'}}, 'choose mean, zeros'),
  ],
)
def test_mistakes_are_one_line(sections, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    data.augmentation.create({'augment': sections}, noise())
  assert '\n' not in str(caught.value)
