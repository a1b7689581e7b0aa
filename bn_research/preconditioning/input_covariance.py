"""Preconditions gradients by the inverse covariances of layer inputs."""

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
  """The preconditioner of a layer.

  Attributes:
    mean: c, (d,); 0 for a layer without a bias.
    inverse: P, (d, d), or the diagonal of P, (d,).
    average: Running moments of the layer inputs: the mean, and the covariance
      or the variances.
  """

  mean: jax.Array
  inverse: jax.Array
  average: norms.Running


@dataclasses.dataclass(frozen=True)
class GiveInputMoments:
  """The hook of an optimizer with the extra argument `input_moments`."""

  def listen(self, model: nnx.Module) -> dict[str, norms.Moments]:
    """Makes the layers record the moments of inputs, by name of the layer."""
    # A `WhitenedDense` multiplies the whitened input by the kernel, but records
    # the moments of the original input.
    return recording.record_inputs(model, of=recording.PLAIN_LAYERS)

  def merged(self, noted: dict[str, norms.Moments]) -> dict[str, norms.Moments]:
    """Returns the moments of a mini-batch from those of micro-batches."""
    return recording.merged(noted)

  def before_update(
    self,
    descent: hooks.Descent,
    noted: Mapping[str, norms.Moments],
    **parts: Any,
  ) -> hooks.Descent:
    """Returns the descent with `input_moments` for the optimizer."""
    del parts
    return descent._replace(given={**descent.given, 'input_moments': noted})


class InputCovarianceState(NamedTuple):
  """The state of `precondition_by_input_covariance`.

  Attributes:
    layers: The state of each layer, by name, for example `dense/0`.
  """

  layers: dict[str, LayerState]

  @property
  def step_hook(self) -> GiveInputMoments:
    """The hook that a training step calls for this optimizer."""
    return GiveInputMoments()


def precondition_by_input_covariance(
  every: int = 1,
  epsilon: float = 1e-2,
  decay: float = 0.95,
  covariance: Structure = 'full',
  relative: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies the gradient of each kernel by the inverse input covariance.

  For a layer z = x K + b whose input x has mean c and covariance S,

    ΔK = P (g_K - c g_bᵀ),    Δb = g_b - cᵀ ΔK,    P = (S + ε I)⁻¹.

  This update is gradient descent in coordinates in which the inputs are white
  (see `norms.inputs.coordinates`). In a layer without a bias, no parameter can
  compensate for centred inputs: then c = 0, and S is the second moment about
  zero.

  The method `update` has the extra argument `input_moments`: by name of each
  layer with a `kernel`, the moments of the layer inputs in the form of
  `norms.inputs.layer_inputs.input_moments`. The moments are of the forward pass
  of the gradient. Every step averages the moments, and
  thus every step has the same collectives. Only the inverse, which needs no
  collective, is computed at an interval.

  Momentum belongs before the transformation, as a sum of raw gradients, because
  every later P can precondition this sum:

    optax.chain(
      optax.trace(0.9),
      precondition_by_input_covariance(every=20),
      optax.scale_by_learning_rate(0.1),
    )

  Args:
    every: Number of updates between two computations of c and P. The first
      update computes c and P.
    epsilon: ε. The eigenvalues of P are at most 1 / ε.
    decay: Weight of the old value in the running averages, which are debiased.
    covariance: The structure of S: 'full'; 'diagonal' for only the variances;
      'identity' for P = I, with c alone: mean-normalized SGD.
    relative: Whether ε is in units of the mean variance, tr(S) / d. The scale
      of x then has no influence. However, P has no bound for an x that hardly
      varies. In an experiment with sigmoids and small weights, the loss
      diverged for this reason.

  Returns:
    An optax gradient transformation with an extra argument.

  Raises:
    ValueError: If an option is out of range. Later, `update` raises a
      ValueError if a kernel has no moments, or moments of a different size.

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
  """The computation for a layer, with the options of the transformation."""

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
    dtype = checks.wider(kernel.dtype)
    inverse = jnp.eye(size, dtype=dtype) if is_full else jnp.ones(size, dtype)
    average = self._population.init(self._map, (size,), dtype)
    return LayerState(jnp.zeros(size, dtype), inverse, average)

  def learn(
    self, state: LayerState, moments: norms.Moments, has_bias: bool
  ) -> LayerState:
    """Averages the moments, and computes c and P at the interval."""
    moments = self._needed(moments)
    average = self._population.update(state.average, moments, self._map)

    def renewed() -> tuple[jax.Array, jax.Array]:
      mean, second = coordinates.second_moments(
        average.mean, average.var, has_bias
      )
      return mean, self._inverse(second)

    # The average skips moments with NaN or infinity, and counts no step. Before
    # the first finite moments, P remains the identity.
    is_due = state.average.steps % self.every == 0
    has_moved = average.steps > state.average.steps
    # `cond` instead of `where`: the inverse is expensive, and rarely due.
    mean, inverse = lax.cond(
      is_due & has_moved, renewed, lambda: (state.mean, state.inverse)
    )
    return LayerState(mean, inverse, average)

  def precondition(
    self, state: LayerState, layer: dict[str, jax.Array]
  ) -> dict[str, jax.Array]:
    """Returns the preconditioned updates of the kernel and of the bias."""
    # The kernel of a convolution becomes the matrix (d, m) of a dense layer on
    # patches.
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
    """The map of the averaged moments: full covariances, or variances."""
    return norms.Whiten() if self.covariance == 'full' else norms.Standardize()

  @property
  def _population(self) -> norms.Ema:
    return norms.Ema(self.decay)

  def _needed(self, moments: norms.Moments) -> norms.Moments:
    """Drops unused covariances, which a compiled program then leaves out."""
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
      # For any matrix W that whitens S + ε I, the inverse is Wᵀ W.
      return matrices.matmul(root.T, root)
    level = second + self.epsilon * (second.mean() if self.relative else 1)
    # With ε = 0, an input without variance has an infinite inverse. The result
    # 0 stops the descent along this input instead.
    is_positive = level > 0
    return jnp.where(is_positive, 1 / jnp.where(is_positive, level, 1), 0)
