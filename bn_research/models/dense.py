"""Dense layers by name, for the section `config.model.dense`."""

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
  """Returns a dense layer with training in whitened coordinates of the input.

  Args:
    every: Number of steps from a change of coordinates to the next change.
    epsilon: The number to add to the variances of the input.
    decay: Weight of the old value in the running moments of the input.
    relative: Whether epsilon is in units of the mean variance.

  Returns:
    A factory with the further arguments of `WhitenedDense`.

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
"""Functions from options to a factory of dense layers, by name."""
