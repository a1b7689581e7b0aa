"""Dense layers by name, as a config chooses them."""

import functools
from collections.abc import Callable

from flax import nnx

from bn_research import norms
from bn_research.preconditioning import WhitenedDense

DenseFactory = Callable[..., nnx.Module]


def linear() -> DenseFactory:
  """Returns the dense layer of Flax: y = W x + b."""
  return nnx.Linear


def prong(
  every: int = 100,
  epsilon: float = 1e-2,
  decay: float = 0.95,
  relative: bool = False,
) -> DenseFactory:
  """Returns a dense layer in coordinates in which its input is white.

  Args:
    every: Number of steps from one change of coordinates to the next.
    epsilon: Added to the variances of the input.
    decay: Weight of the old value in the running moments of the input.
    relative: Whether epsilon counts in units of the mean variance.

  Raises:
    ValueError: If an option is out of range.

  Source: Desjardins et al. (2015), Algorithm 1.
  """
  if every < 1:
    raise ValueError(f'every={every}; choose at least 1 step')
  whiten = norms.Whiten('zca', epsilon=epsilon, relative=relative)
  return functools.partial(
    WhitenedDense, every=every, whiten=whiten, population=norms.Ema(decay)
  )


LAYERS = {'dense': linear, 'prong': prong}
"""Dense layers by name: functions of options to a factory of layers."""
