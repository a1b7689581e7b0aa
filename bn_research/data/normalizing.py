"""Centres, standardizes or whitens inputs, with moments of the training set.

The moments come from the statistics of `bn_research.norms`, in float64, from
chunks of examples whose moments merge exactly. The memory thus does not depend
on the number of examples.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bn_research import norms, ranges, registry
from bn_research.data import pipeline
from bn_research.norms.statistics import collectives, moments

_CHUNK = 2**22  # numbers of input
_PER = ('channel', 'pixel')
_LARGEST = 2**14  # The covariance then takes 2 GiB.

ToInput = Callable[[jax.Array], jax.Array]


class Normalizer(NamedTuple):
  """The function x -> (x - mean) * scale, or (x - mean) @ scale for a matrix.

  Attributes:
    mean: (d,) float32, with d channels, or d numbers per example.
    scale: (d,) float32, or (d, d).
  """

  mean: np.ndarray
  scale: np.ndarray

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes a mini-batch.

    Args:
      x: (batch, ...) float32, with d channels or with d numbers per example.

    Returns:
      Normalized inputs of the shape of `x`.
    """
    apart = x.reshape(-1, len(self.mean)) - self.mean
    if self.scale.ndim == 1:
      return (apart * self.scale).reshape(x.shape)
    # With the default precision, an accelerator would round the factors of the
    # product to bfloat16 or to TF32.
    whitened = jnp.matmul(apart, self.scale, precision='highest')
    return whitened.reshape(x.shape)


class Inputs(NamedTuple):
  """The inputs of a network for all training images.

  Attributes:
    images: (num_examples, height, width, channels) uint8.
    to_input: The function from images to inputs, float32 of the same shape.
  """

  images: np.ndarray
  to_input: ToInput

  def moments(self, kind: norms.Map, per: str) -> moments.Moments:
    """Returns the moments of all inputs, in float64.

    Args:
      kind: The map that needs the moments, and makes the estimates.
      per: `'channel'` for moments over all pixels, (1, channels), or `'pixel'`
        for moments over the examples, (1, height · width · channels).

    Raises:
      ValueError: If `per` is neither.
    """
    if per not in _PER:
      raise ValueError(f'per={per!r}; choose {" or ".join(_PER)}')

    @jax.jit
    def estimate(images: jax.Array) -> moments.Moments:
      x = self.to_input(images).astype(jnp.float64)
      x = x.reshape(-1, x.shape[-1] if per == 'channel' else x[0].size)
      found = kind.estimate(x, None, (0,), collectives.ONE_DEVICE)
      # A union has a count for each mean.
      counts = jnp.broadcast_to(found.count, found.mean.shape)
      return found._replace(count=counts)

    with _float64():
      parts = (estimate(chunk) for chunk in self._chunks())
      return functools.reduce(jax.jit(moments.joined), parts)

  def _chunks(self) -> Iterator[np.ndarray]:
    size = max(1, _CHUNK // self.images[0].size)
    for start in range(0, len(self.images), size):
      yield self.images[start : start + size]


def centre(inputs: Inputs, per: str = 'pixel') -> Normalizer:
  """Fits x - m, with m the mean of all examples.

  Args:
    inputs: The inputs of the training split.
    per: `channel` for a mean of each channel over all pixels, or `pixel` for a
      mean of each pixel of each channel.

  Raises:
    ValueError: If `per` is neither.
  """
  with _float64():
    (mean,) = inputs.moments(norms.Standardize(), per).mean
    return _float32(mean, jnp.ones_like(mean))


def standardize(
  inputs: Inputs, per: str = 'pixel', epsilon: float = 1e-2
) -> Normalizer:
  """Fits (x - m) / √(v + λ), with λ = ε mean(v).

  The moments are exact, and computed in float64.

  Args:
    inputs: The inputs of the training split, with mean m and variances v.
    per: `channel` for the moments of each channel over all pixels, or `pixel`
      for the moments of each pixel of each channel.
    epsilon: ε, in units of the mean variance. ε limits the scale of a pixel
      that is black in almost all images.

  Raises:
    ValueError: If epsilon is not positive, or if `per` is unknown.
  """
  ranges.positive(epsilon=epsilon)
  with _float64():
    found = inputs.moments(norms.Standardize(), per)
    (mean,), (variance,) = found.mean, found.variance
    level = variance + epsilon * variance.mean()
    # For a set of identical images, each variance is 0.
    scale = jnp.where(level > 0, 1 / jnp.sqrt(level), 0)
    return _float32(mean, scale)


def whiten(
  inputs: Inputs, per: str = 'pixel', epsilon: float = 1e-2
) -> Normalizer:
  """Fits (x - m) (S + λ I)^-½, with λ = ε tr(S) / d.

  The moments are exact, and computed in float64. For d = 3072, as in CIFAR-10,
  the fit takes about a minute on two cores.

  Args:
    inputs: The inputs of the training split, with mean m and covariance S.
    per: `channel` for the covariance of the channels over all pixels, or
      `pixel` for the covariance of all d pixels of all channels.
    epsilon: ε, in units of the mean variance. ε limits the scale of a direction
      with almost no variance.

  Raises:
    ValueError: If epsilon is not positive, if `per` is unknown, or if the
      covariance is too large for the memory.
  """
  ranges.positive(epsilon=epsilon)
  size = inputs.images[0].size
  if per == 'pixel' and size > _LARGEST:
    raise ValueError(
      f'per={per!r} takes a covariance of {size} x {size} numbers; choose'
      f" per='channel', or images of at most {_LARGEST} numbers"
    )
  # A relative ε is the λ of the formula.
  kind = norms.Whiten(method='zca', epsilon=epsilon)
  with _float64():
    found = inputs.moments(kind, per)
    pair = jax.jit(kind.pair)(found)
    return _float32(pair.mean[0], pair.spread[0, 0])


NORMALIZERS: dict[str, Any] = {
  'none': None,
  'centre': centre,
  'standardize': standardize,
  'whiten': whiten,
}
"""Functions from all training inputs to a `Normalizer`, by name."""


class Found(NamedTuple):
  """The normalizer of a config, before the fit.

  Attributes:
    where: The place of the section, for messages.
    name: The name.
    options: The options.
    factory: The function from all training inputs; None for no normalization.
  """

  where: str
  name: Any
  options: dict[str, Any]
  factory: Any


def find(config: Mapping[str, Any]) -> Found:
  """Finds the normalizer of the section `config.data`, and fits nothing.

  Raises:
    UserError: If the name is unknown.
  """
  where = 'config.data.normalize'
  name, options = registry.split(config.get('normalize'))
  return Found(
    where, name, options, registry.find(where, NORMALIZERS, name or 'none')
  )


def input_function(config: Mapping[str, Any], images: np.ndarray) -> ToInput:
  """Returns the function from stored images to inputs of the network.

  Args:
    config: The section `config.data`. `binarize` is the argument of `to_input`.
      `normalize` is a section with options, and with a name in `NORMALIZERS` or
      with a name `module:attribute`. This function of the user maps all
      training inputs `x`, (num_examples, d), to a function of a mini-batch of
      inputs. A function with an argument `inputs` gets the `Inputs` instead,
      and need not hold all training inputs in memory.
    images: (num_examples, height, width, channels) uint8, the training set.

  Returns:
    A function for use inside `jit`: from (batch, height, width, channels) uint8
    to float32 of the same shape.

  Raises:
    UserError: If an option is unknown or out of range.
  """
  to_input = functools.partial(
    pipeline.to_input, binarize=config.get('binarize')
  )
  where, name, options, factory = find(config)
  if factory is None:
    return to_input
  given: dict[str, Any] = {'inputs': Inputs(images, to_input)}
  if 'inputs' not in registry.parameters_of(where, factory, name):
    # The moments are of the results of `to_input`, the arguments of
    # `normalizer`.
    x = np.asarray(to_input(jnp.asarray(images)))
    given = {'x': x.reshape(len(images), -1)}
  normalizer = registry.call(where, factory, name, options, **given)
  return lambda images: normalizer(to_input(images))


@contextlib.contextmanager
def _float64() -> Iterator[None]:
  """Computes in float64 on the CPU, for the same numbers on every device."""
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.enable_x64(True))
    # A user may have told JAX to use a GPU alone, which has float64 too.
    with contextlib.suppress(RuntimeError):
      cpu = jax.local_devices(backend='cpu')[0]
      stack.enter_context(jax.default_device(cpu))
    yield


def _float32(mean: jax.Array, scale: jax.Array) -> Normalizer:
  return Normalizer(np.asarray(mean, np.float32), np.asarray(scale, np.float32))
