"""The gradient axis: which moments normalize, and what of them is learned from.

A gradient policy is a function of two pairs, that of the batch and that of the
population (None where nothing is remembered), and returns the pair that
normalizes. A pair is what the map made of moments: (mean, variance), or (mean,
whitening matrix); either may be None where the map does without.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from jax import lax

Pair: TypeAlias = tuple[Any, Any]
Gradient: TypeAlias = Callable[[Pair, Pair | None], Pair]


def through(batch: Pair, population: Pair | None) -> Pair:
  """The batch's moments, differentiated: normalization as published.

  Source: Ioffe and Szegedy (2015), Section 3.
  """
  del population
  return batch


def stopped(batch: Pair, population: Pair | None) -> Pair:
  """The batch's moments as constants: the mistake that Section 2 warns of.

  A step then moves a bias that the next normalization takes out again: the
  loss stays, the bias grows without bound. Source: Ioffe and Szegedy (2015),
  Section 2.
  """
  del population
  return lax.stop_gradient(batch)


def mean_only(batch: Pair, population: Pair | None) -> Pair:
  """The gradient passes through the mean; the spread is a constant."""
  del population
  mean, spread = batch
  return mean, lax.stop_gradient(spread)


def spread_only(batch: Pair, population: Pair | None) -> Pair:
  """The gradient passes through the spread; the mean is a constant."""
  del population
  mean, spread = batch
  return lax.stop_gradient(mean), spread


NAMES: dict[str, Gradient] = {
  'through': through,
  'stopped': stopped,
  'mean_only': mean_only,
  'spread_only': spread_only,
}


def resolve(gradient: str | Gradient) -> Gradient:
  """Returns the policy of that name, or the function itself.

  Raises:
    ValueError: For an unknown name; the message lists the names.
  """
  if callable(gradient):
    return gradient
  if gradient not in NAMES:
    raise ValueError(
      f'gradient={gradient!r} is not a gradient policy; use one of '
      f'{", ".join(NAMES)}, or a function of (batch, population) pairs.'
    )
  return NAMES[gradient]
