"""Whitening on the optimizer's side: gradients times inverse covariances."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from bn_research import hooks, norms, ranges, trees
from bn_research.norms import checks
from bn_research.norms.inputs import coordinates
from bn_research.norms.roots import matrices
from bn_research.preconditioning import by_layer, recording

Structure = Literal['full', 'diagonal', 'identity']


class LayerState(NamedTuple):
  """What preconditions one layer.

  Attributes:
    mean: c, (d,); 0 for a layer without bias.
    inverse: P, (d, d); or its diagonal, (d,).
    average: Running mean and covariance, or variance, of the layer's inputs.
  """

  mean: jax.Array
  inverse: jax.Array
  average: norms.Running


@dataclasses.dataclass(frozen=True)
class GiveInputMoments:
  """The hook of optimizers whose `update` takes `input_moments`."""

  def listen(self, model: nnx.Module) -> dict[str, norms.Moments]:
    """Lets the layers note the moments of their inputs, by name."""
    # A layer in whitened coordinates multiplies another input than its own.
    return recording.record_inputs(model, of=recording.PLAIN_LAYERS)

  def before_update(
    self,
    descent: hooks.Descent,
    noted: Mapping[str, norms.Moments],
    **parts: Any,
  ) -> hooks.Descent:
    """Returns the same descent, with `input_moments` for the optimizer."""
    del parts
    return descent._replace(given={**descent.given, 'input_moments': noted})


class InputCovarianceState(NamedTuple):
  """State of `precondition_by_input_covariance`.

  Attributes:
    layers: By the name of the layer, such as `dense/0`.
  """

  layers: dict[str, LayerState]

  @property
  def step_hook(self) -> GiveInputMoments:
    """What a step of training is to do for this optimizer."""
    return GiveInputMoments()


def precondition_by_input_covariance(
  every: int = 1,
  epsilon: float = 1e-2,
  decay: float = 0.95,
  covariance: Structure = 'full',
  relative: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies each kernel's gradient by its input's inverse covariance.

  For a layer z = x K + b whose input x has mean c and covariance S,

    ΔK = P (g_K - c g_bᵀ),    Δb = g_b - cᵀ ΔK,    P = (S + ε I)⁻¹.

  This is gradient descent in coordinates in which the inputs are white (see
  `norms.coordinates`). A layer without bias cannot take up what centring
  changes: there c = 0, and S is the second moment about zero.

  `update` takes `input_moments`, those of the same forward pass as the
  gradient: by the name of each layer that has a `kernel`, what
  `norms.inputs.feature_moments` or `patch_moments` returns. They are averaged
  at every step, so that collectives are the same at every step; only the
  inverse, which needs none, is renewed at an interval.

  Momentum belongs before it, as a sum of raw gradients, which any later P can
  precondition:

    optax.chain(
      optax.trace(0.9),
      precondition_by_input_covariance(every=20),
      optax.scale_by_learning_rate(0.1),
    )

  Args:
    every: Updates from one renewal of c and P to the next; the first renews.
    epsilon: ε, which bounds P by 1 / ε.
    decay: Weight of the old value in the running averages, which are debiased.
    covariance: What S is taken to be: 'full'; 'diagonal', the variances alone;
      'identity', where P = I and c alone is left: mean-normalized SGD.
    relative: Whether ε counts in units of the mean variance, tr(S) / d. Then
      the scale of x is no matter, but nothing bounds P where x hardly varies,
      as behind sigmoids with small weights: there the loss exploded.

  Returns:
    An optax gradient transformation with an extra argument.

  Raises:
    ValueError: If an option is out of range; later, if a kernel has no moments,
      or moments of another size.

  Source: Ioffe and Szegedy (2015), Section 2, "or by changing the parameters of
  the optimization algorithm"; Martens and Grosse (2015), the input's factor of
  K-FAC; Wiesler et al. (2014), mean-normalized SGD.
  """
  rule = _Rule(every, epsilon, decay, covariance, relative)

  def init(params: optax.Params) -> InputCovarianceState:
    layers = trees.by_module(params)
    return InputCovarianceState(
      {
        name: rule.init(layer['kernel'])
        for name, layer in layers.items()
        if 'kernel' in layer
      }
    )

  def update(
    updates: optax.Updates,
    state: InputCovarianceState,
    params: optax.Params | None = None,
    *,
    input_moments: Any,
    **extra: Any,
  ) -> tuple[optax.Updates, InputCovarianceState]:
    del params, extra
    layers = trees.by_module(updates)
    moments = by_layer.moments_of(input_moments)
    new = {}
    for name, layer_state in state.layers.items():
      layer = layers[name]
      by_layer.check(name, layer['kernel'], moments)
      new[name] = rule.learn(layer_state, moments[name], 'bias' in layer)
      layer.update(rule.precondition(new[name], layer))
    return by_layer.with_layers(updates, layers), InputCovarianceState(new)

  return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass(frozen=True)
class _Rule:
  """What is done to one layer; the fields are those of the transformation."""

  every: int
  epsilon: float
  decay: float
  covariance: Structure
  relative: bool

  def __post_init__(self):
    if self.every < 1:
      raise ValueError(f'every={self.every}; choose at least 1 step')
    ranges.non_negative(epsilon=self.epsilon)
    ranges.weight_of_old(decay=self.decay)
    if self.covariance not in ('full', 'diagonal', 'identity'):
      raise ValueError(
        f'covariance={self.covariance!r}; choose full, diagonal or identity'
      )

  def init(self, kernel: jax.Array) -> LayerState:
    size = math.prod(kernel.shape[:-1])
    is_full = self.covariance == 'full'
    inverse = jnp.eye(size) if is_full else jnp.ones(size)
    dtype = checks.wider(kernel.dtype)
    average = self._population.init(self._map, (size,), dtype)
    return LayerState(jnp.zeros(size), inverse, average)

  def learn(
    self, state: LayerState, moments: norms.Moments, has_bias: bool
  ) -> LayerState:
    """Averages the moments, and renews c and P where it is time to."""
    moments = self._needed(moments)
    average = self._population.update(state.average, moments, self._map)

    def renewed() -> tuple[jax.Array, jax.Array]:
      mean, second = coordinates.second_moments(
        average.mean, average.var, has_bias
      )
      return mean, self._inverse(second)

    is_due = state.average.steps % self.every == 0
    has_moved = average.steps > state.average.steps
    mean, inverse = lax.cond(
      is_due & has_moved, renewed, lambda: (state.mean, state.inverse)
    )
    return LayerState(mean, inverse, average)

  def precondition(
    self, state: LayerState, layer: dict[str, jax.Array]
  ) -> dict[str, jax.Array]:
    """Returns the layer's new updates: of the kernel, and of a bias."""
    kernel = layer['kernel'].reshape(len(state.mean), -1)
    if 'bias' in layer:
      kernel = kernel - jnp.outer(state.mean, layer['bias'])
    if state.inverse.ndim == 2:
      kernel = matrices.matmul(state.inverse, kernel)
    else:
      kernel = state.inverse[:, None] * kernel
    new = {'kernel': kernel.reshape(layer['kernel'].shape)}
    if 'bias' in layer:
      new['bias'] = layer['bias'] - matrices.matmul(state.mean, kernel)
    return {key: leaf.astype(layer[key].dtype) for key, leaf in new.items()}

  @property
  def _map(self) -> norms.Map:
    """What is averaged: covariances of all inputs together, or variances."""
    return norms.Whiten() if self.covariance == 'full' else norms.Standardize()

  @property
  def _population(self) -> norms.Ema:
    return norms.Ema(self.decay)

  def _needed(self, moments: norms.Moments) -> norms.Moments:
    """Drops what is not used, so that it need not be computed."""
    if self.covariance == 'full':
      return moments
    if self.covariance == 'identity':
      return moments._replace(comoment=jnp.zeros_like(moments.mean))
    return moments._replace(comoment=jnp.diagonal(moments.comoment[0]))

  def _inverse(self, second: jax.Array) -> jax.Array:
    if self.covariance == 'identity':
      return jnp.ones(second.shape[-1], second.dtype)
    if self.covariance == 'full':
      whiten = norms.Whiten(
        'cholesky', epsilon=self.epsilon, relative=self.relative
      )
      root = whiten.root(second, second.shape[-1])[0]
      return matrices.matmul(root.T, root)
    level = second + self.epsilon * (second.mean() if self.relative else 1)
    is_positive = level > 0
    return jnp.where(is_positive, 1 / jnp.where(is_positive, level, 1), 0)
