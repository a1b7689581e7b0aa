"""The parts of the Inception network: a stem, and modules of four branches."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bn_research import norms
from bn_research.models.convolution import ConvNorm
from bn_research.models.interface import NormFactory, Tap
from bn_research.models.nonlinearities import Nonlinearity

# The initial weights are not published. The variance here is 2 / (inputs of a
# unit). The common 2 / outputs does not fit branches: a branch has few outputs,
# so the activations of a network without norms would grow with each module.
_KERNEL = nnx.initializers.variance_scaling(2.0, 'fan_in', 'truncated_normal')
_DEPTH_MULTIPLIER = 8


class Entry(NamedTuple):
  """The first layer, and the size of the images for which the layer is made.

  Attributes:
    kernel: Height and width of the kernel of the first layer.
    strides: The distance between the positions of this kernel.
    pools: Whether the entry has poolings.
    least: The smallest height and width of an image, in pixels. The smallest
      image has a single position in the last module.
  """

  kernel: int
  strides: int
  pools: bool
  least: int


# The separable convolution is a convolution of 7 x 7 for each channel, with a
# stride of 2, before the layer of 1 x 1.
ENTRIES = {
  'separable': Entry(1, 1, True, 32),
  'plain': Entry(7, 2, True, 32),
  'small': Entry(3, 1, False, 4),
}


class Row(NamedTuple):
  """A row of the table of modules: numbers of channels, and a pooling.

  Attributes:
    single: Channels of the 1 x 1 convolution, or 0 for none.
    three: Channels of a 1 x 1 and of a 3 x 3 convolution.
    double: Channels of a 1 x 1 convolution, and of each of two 3 x 3
      convolutions.
    pool: The kind of the pooling: 'avg' or 'max'.
    projection: Channels of the 1 x 1 convolution after the pooling. 0 for none:
      the module then takes every second position.
  """

  single: int
  three: tuple[int, int]
  double: tuple[int, int]
  pool: str
  projection: int


class Maker(NamedTuple):
  """What all layers of a network have in common.

  Attributes:
    norm: The factory of norms.
    nonlinearity: The nonlinearity of each layer.
    width: The factor of all numbers of channels.
    dtype: Type of the computation.
    rngs: Keys for the initializers.
  """

  norm: NormFactory
  nonlinearity: Nonlinearity
  width: float
  dtype: Dtype
  rngs: nnx.Rngs

  def channels(self, number: int) -> int:
    """Returns a number of channels times the width, but 1 at least."""
    return max(1, round(self.width * number))

  def layer(
    self,
    place: str,
    num_inputs: int,
    features: int,
    kernel: int,
    strides: int = 1,
  ) -> 'Layer':
    """Returns a layer with `features` channels times the width."""
    convolved = ConvNorm(
      self.norm,
      place,
      num_inputs,
      self.channels(features),
      kernel,
      strides=strides,
      kernel_init=_KERNEL,
      dtype=self.dtype,
      rngs=self.rngs,
    )
    return Layer(place, convolved, self.nonlinearity)


class Layer(nnx.Module):
  """A convolution, a norm and a nonlinearity: g(Norm(K * x))."""

  def __init__(
    self, place: str, convolved: ConvNorm, nonlinearity: Nonlinearity
  ):
    """Takes the parts."""
    self.place = place
    self.convolved = convolved
    self.nonlinearity = nonlinearity

  def __call__(self, x: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Returns the activations, (batch, height, width, features)."""
    h = self.convolved(x, train)
    return self.nonlinearity(tap(f'{self.place}/input', h))


class Stem(nnx.Module):
  """The layers before the modules: 7 x 7, pool, 1 x 1, 3 x 3, pool.

  With local response normalization, such a norm follows the first pooling, and
  a second norm precedes the second pooling.

  Source: Ioffe and Szegedy (2015), Figure 5; Szegedy et al. (2015), for local
  response normalization.
  """

  def __init__(
    self, make: Maker, num_inputs: int, entry: str, local_response_norm: bool
  ):
    """Initializes the weights; for the arguments see `InceptionBN`."""
    kernel, strides, self.has_pools, _ = ENTRIES[entry]
    self.has_response_norms = local_response_norm
    self.depthwise = nnx.data(None)
    if entry == 'separable':
      # No nonlinearity follows, hence the default initializer of Flax.
      self.depthwise = nnx.Conv(
        num_inputs,
        _DEPTH_MULTIPLIER * num_inputs,
        (7, 7),
        strides=2,
        padding=3,
        feature_group_count=num_inputs,
        use_bias=False,
        dtype=make.dtype,
        rngs=make.rngs,
      )
      num_inputs *= _DEPTH_MULTIPLIER
    self.first = make.layer('stem', num_inputs, 64, kernel, strides)
    narrow = make.channels(64)
    self.reduce = make.layer('conv2_reduce', narrow, 64, 1)
    self.second = make.layer('conv2', narrow, 192, 3)

  def __call__(self, x: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Returns the input of the first module, (batch, height, width, 192)."""
    h = x if self.depthwise is None else self.depthwise(x)
    h = self._normalized(self._pooled(self.first(h, train, tap)))
    h = self.second(self.reduce(h, train, tap), train, tap)
    return self._pooled(self._normalized(h))

  def _pooled(self, x: jax.Array) -> jax.Array:
    return pooled(x, 'max', strides=2) if self.has_pools else x

  def _normalized(self, x: jax.Array) -> jax.Array:
    if not self.has_response_norms:
      return x
    return norms.local_response_norm().apply(x, update=False)[0]


class Mixed(nnx.Module):
  """An Inception module: four branches, joined along the channels.

    [1 x 1;  1 x 1, 3 x 3;  1 x 1, 3 x 3, 3 x 3;  pool, 1 x 1]

  Attributes:
    num_channels: Number of channels of the result.
  """

  def __init__(self, make: Maker, place: str, row: Row, num_inputs: int):
    """Initializes the weights.

    Args:
      make: The maker of layers.
      place: The name of the module, for example `'mixed3a'`.
      row: The numbers of channels.
      num_inputs: Number of channels of the input.
    """
    self.pool = row.pool
    self.strides = last = 1 if row.projection else 2
    chain = functools.partial(_chain, make, place, num_inputs)
    branches = [
      chain(('3x3_reduce', row.three[0], 1), ('3x3', row.three[1], 3, last)),
      chain(
        ('double_reduce', row.double[0], 1),
        ('double_1', row.double[1], 3),
        ('double_2', row.double[1], 3, last),
      ),
    ]
    if row.single:
      branches.insert(0, chain(('1x1', row.single, 1)))
    self.branches = nnx.List(branches)
    projection = [('pool', row.projection, 1)] if row.projection else []
    self.projection = chain(*projection)
    widths = [row.single, row.three[1], row.double[1], row.projection]
    # A module without a projection passes its pooled input on.
    passed = 0 if row.projection else num_inputs
    self.num_channels = passed + sum(make.channels(n) for n in widths if n)

  def __call__(self, x: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Returns the joined branches, (batch, height, width, num_channels)."""
    h = pooled(x, self.pool, self.strides)
    chains = [*((branch, x) for branch in self.branches), (self.projection, h)]
    results = []
    for layers, h in chains:
      for layer in layers:
        h = layer(h, train, tap)
      results.append(h)
    return jnp.concatenate(results, -1)


def _chain(
  make: Maker, place: str, num_inputs: int, *sizes: Sequence[Any]
) -> nnx.List:
  """Returns layers, one after the other: name, channels, kernel, strides."""
  layers = []
  for name, features, *shape in sizes:
    layers.append(make.layer(f'{place}_{name}', num_inputs, features, *shape))
    num_inputs = make.channels(features)
  return nnx.List(layers)


def pooled(x: jax.Array, kind: str, strides: int) -> jax.Array:
  """Pools windows of 3 x 3 positions.

  Args:
    x: (batch, height, width, channels).
    kind: 'max', or 'avg' for means over the positions inside of the image.
    strides: The distance between windows.

  Returns:
    (batch, height / strides, width / strides, channels), rounded up.
  """
  if kind == 'max':
    return _over_windows(jnp.maximum, x, -jnp.inf, strides)
  ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
  count = _over_windows(jnp.add, ones, 0, strides)
  return _over_windows(jnp.add, x, 0, strides) / count


def _over_windows(
  combine: Callable[[jax.Array, jax.Array], jax.Array],
  x: jax.Array,
  border: float,
  strides: int,
) -> jax.Array:
  """Combines the positions of each window of 3 x 3, first rows, then columns.

  Slices, because the backward pass of XLA's own pooling is slow on a CPU.
  """
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=border)
  for axis in (1, 2):
    size = x.shape[axis]
    parts = (
      jax.lax.slice_in_dim(padded, i, i + size, strides, axis) for i in range(3)
    )
    padded = functools.reduce(combine, parts)
  return padded
