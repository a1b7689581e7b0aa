"""A dense layer with training in whitened coordinates of the input."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jax import lax

from bn_research import norms
from bn_research.layers.nnx.promotion import array_of, is_variable
from bn_research.norms.inputs import coordinates
from bn_research.norms.roots.matrices import matmul
from bn_research.preconditioning.refresh import Refresh

_KERNEL_INIT = nnx.initializers.lecun_normal()
_WHITEN = norms.Whiten('zca', epsilon=1e-2, relative=False)
_POPULATION = norms.Ema(0.95)


class WhitenedDense(nnx.Module):
  """The dense layer z = x K + b, trained in whitened coordinates of x.

    z = (x - c) U V + d,    K = U V,    b = d - c K

  The trained parameters are V and d, and U whitens x. Gradient descent on V and
  d is descent on K and b with the inverse covariance of x as preconditioner.
  The method `refresh` moves c and U to new moments of x, and does not change
  the outputs z, up to rounding. Before the first refresh, c = 0 and U = I, and
  the layer is an `nnx.Linear`. Without a bias c stays 0, and U whitens the
  second moments about zero.

  Attributes:
    kernel: V, `nnx.Param` (in_features, out_features).
    bias: d, `nnx.Param` (out_features,), or None.
    mean: c, `nnx.BatchStat` (in_features,).
    basis: U, `nnx.BatchStat` (in_features, in_features).
    average: Running moments of x, each array an `nnx.BatchStat`.
    observe: None, or a function that every call of the layer calls with x.

  Source: Desjardins et al., "Natural Neural Networks" (2015), Algorithm 1.
  """

  step_hook = Refresh()

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    every: int = 100,
    whiten: norms.Whiten = _WHITEN,
    population: norms.Ema | norms.Cumulative = _POPULATION,
    use_bias: bool = True,
    kernel_init: Initializer = _KERNEL_INIT,
    bias_init: Initializer = nnx.initializers.zeros,
    param_dtype: Dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Initializes K = V and b = d.

    Args:
      in_features: Size of the last axis of x.
      out_features: Size of the last axis of z.
      every: Steps from a refresh to the next refresh. The first step refreshes.
      whiten: The whitening that makes U, of the whole input in a single block.
        A small `epsilon` makes the rounding errors of a refresh large:
        `norms.inputs.coordinates.move` lists measured errors.
      population: The average of the moments of steps.
      use_bias: Whether the layer has a bias d.
      kernel_init: Initializer of V.
      bias_init: Initializer of d.
      param_dtype: Type of all arrays, float32 or wider.
      rngs: Keys for the initializers.

    Raises:
      ValueError: If `every` is not positive.
    """
    if every < 1:
      raise ValueError(f'every={every} must be at least 1 step.')
    shape = (in_features, out_features)
    self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
    self.bias = nnx.data(
      nnx.Param(bias_init(rngs.params(), shape[1:], param_dtype))
      if use_bias
      else None
    )
    mean = jnp.zeros(in_features, param_dtype)
    basis = jnp.eye(in_features, dtype=param_dtype)
    self.mean = nnx.BatchStat(mean)
    self.basis = nnx.BatchStat(basis)
    self.population = population
    whiten = whiten.remembering_moments()
    average = self.population.init(whiten, (in_features,), param_dtype)
    self.average = nnx.data(jax.tree.map(nnx.BatchStat, average))
    self.whiten = whiten
    self.every = every
    self.observe: Callable[[jax.Array], None] | None = None

  def __call__(self, x: jax.Array) -> jax.Array:
    """Computes the outputs of the layer.

    Args:
      x: Inputs (..., in_features), floating.

    Returns:
      z, (..., out_features).
    """
    if self.observe is not None:
      self.observe(x)
    z = matmul(x - self.mean[...], self.basis[...]) @ self.kernel[...]
    return z if self.bias is None else z + self.bias[...]

  def refresh(
    self,
    moments: norms.Moments,
    covectors: Sequence['WhitenedDense'] = (),
  ) -> jax.Array:
    """Averages the moments of a step, and at the interval moves coordinates.

    Args:
      moments: Moments of the inputs of the step, in the form of
        `norms.inputs.layer_inputs.input_moments`: count and mean
        (in_features,), and co-moment (1, in_features, in_features).
      covectors: Copies of the layer that hold gradients, or sums of gradients
        (a momentum), in place of the weights. The copies move together with the
        layer.

    Returns:
      Whether the coordinates are new, bool ().
    """
    average = jax.tree.map(array_of, self.average, is_leaf=is_variable)
    learned = self.population.update(average, moments, self.whiten)
    mean, second = coordinates.second_moments(
      learned.mean, learned.var, self.bias is not None
    )
    layers = (self, *covectors)
    old = coordinates.Coordinates(self.mean[...], self.basis[...])
    weights = [layer._weights for layer in layers]

    def moved():
      root = self.whiten.root(second, len(mean))[0]
      new = coordinates.Coordinates(mean, root.T)
      # The weights are a vector and the gradients are covectors: inner products
      # of both, for example the change of the loss, must not change.
      first = coordinates.move(weights[0], old, new)
      rest = [coordinates.carry(w, old, new) for w in weights[1:]]
      # An optimizer may hold the momentum in a narrower type, and both branches
      # of `cond` must return the same types.
      as_before = lambda w, old: w.astype(old.dtype)
      return new, jax.tree.map(as_before, [first, *rest], weights)

    is_due = (average.steps % self.every == 0) & (learned.steps > average.steps)
    # A constant input, with a covariance of zero, has no whitened coordinates.
    is_due &= jnp.trace(second[0]) > 0
    # `cond` instead of `where`: a root is expensive, and few steps need a root.
    new, weights = lax.cond(is_due, moved, lambda: (old, weights))
    self.mean.set_value(new.mean)
    self.basis.set_value(new.basis)
    jax.tree.map(_set_value, self.average, learned, is_leaf=is_variable)
    for layer, w in zip(layers, weights, strict=True):
      layer.kernel.set_value(w.kernel)
      if layer.bias is not None:
        layer.bias.set_value(w.bias)
    return is_due

  @property
  def _weights(self) -> coordinates.Affine:
    bias = None if self.bias is None else self.bias[...]
    return coordinates.Affine(self.kernel[...], bias)


def _set_value(variable: nnx.Variable, value: jax.Array) -> None:
  variable.set_value(value)
