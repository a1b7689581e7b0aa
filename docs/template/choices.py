"""A new choice on each axis: scope, map, population and gradient policy."""

import dataclasses

import jax
import jax.numpy as jnp

from bn_research import norms
from bn_research.norms.populations.running import RunningPopulation, moved
from bn_research.norms.statistics.collectives import ONE_DEVICE


@dataclasses.dataclass(frozen=True)
class Interleaved(norms.Scope):
  """Rows i, i + k, i + 2k, ... share statistics, for k domains."""

  num_domains: int = 2

  def objection(self, normalization):
    """Returns a sentence if the choices do not fit; optional."""
    if normalization.map.merges:
      return None
    return f'{self} merges statistics, and {normalization.map} has no merge.'

  def features(self, shape):
    """Returns the shape of the remembered mean."""
    return shape[-1:]

  def expand(self, leaf, shape):
    """Returns a remembered array that broadcasts against the activations."""
    return leaf.reshape((1,) * (len(shape) - 1) + leaf.shape)

  def view(self, x, map_):
    """Cuts the rows in (rows of a domain, domains), and pools the first."""
    rows, rest = divmod(x.shape[0], self.num_domains)
    if rest:
      raise ValueError(
        f'{x.shape[0]} rows are no multiple of {self.num_domains} domains'
      )
    return norms.View(x.shape, (0, *range(2, x.ndim)), cut=(0, rows))

  def moments(self, view, x, mask, map_):
    """Returns the moments of each domain, and of the whole batch."""
    each = map_.estimate(x, mask, view.axes, ONE_DEVICE)
    return each, map_.merge(each, 1)  # Axis 1 counts the domains.


@dataclasses.dataclass(frozen=True)
class AtLeast(norms.Standardize):
  """(x - μ) / √(max(σ², least²) + ε)."""

  numbers = ('epsilon', 'least')

  least: float = 1.0

  def recall(self, mean, var):
    """Returns the pair that normalizes."""
    return super().recall(mean, jnp.maximum(var, self.least**2))


@dataclasses.dataclass(frozen=True)
class Tail(RunningPopulation):
  """The average of all batches after the first `start` batches."""

  start: int = 0

  def update(self, state, moments, map_):
    """Returns the next state; a rate of 1 forgets the old value."""
    rate = 1 / (jnp.maximum(state.steps - self.start, 0) + 1)
    weight = jnp.ones_like(state.weight)
    return moved(state, moments, map_, rate, weight, unbiased=True)


def halved(batch, population, map_):
  """Returns the pair of the batch, with half of each derivative."""
  stop = jax.lax.stop_gradient
  return jax.tree.map(lambda m: 0.5 * m + 0.5 * stop(m), batch)
