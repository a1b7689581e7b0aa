"""Internal covariate shift, in the definition of Santurkar et al. (2018)."""

import jax
import jax.numpy as jnp

from bn_research.probes import layers
from bn_research.probes.observation import Observation


def covariate_shift(observation: Observation) -> dict[str, jax.Array]:
  """Measures the change of a layer's gradient by the steps of earlier layers.

    G  = ∇_{W_i} L(W_1, ..., W_k)
    G' = ∇_{W_i} L(W_1 + ΔW_1, ..., W_{i-1} + ΔW_{i-1}, W_i, ..., W_k)
    shift of layer i = ‖G − G'‖,    cosine = ⟨G, G'⟩ / (‖G‖ ‖G'‖)

  Both gradients are of the same mini-batch. ΔW is the step of the training on
  this mini-batch. For k layers the cost is about k + 2 gradients.

  Args:
    observation: The network, a mini-batch, and the step on this mini-batch.

  Returns:
    Three numbers, () float32, for each layer with a kernel:
    `'dense/0/distance'` is the shift, `'dense/0/cosine'` is the cosine, and
    `'dense/0/gradient'` is ‖G‖. The distance of the first layer is 0.

  Source: Santurkar et al. (2018), "How Does Batch Normalization Help
  Optimization?", Definition 2.1.
  """
  step = observation.take_step()
  # PRONG may move layers to new coordinates in the step. `origin` has the old
  # weights in the new coordinates, as `step.grads` and `step.params` are.
  params, rest = step.origin
  found: dict[str, jax.Array] = {}
  moved: list[int] = []
  for layer in layers.in_order(observation):
    weights = layers.chosen(params, layer.weights)
    new = layers.chosen(step.params, moved)

    def loss(weights, new=new):
      moved_params = layers.replaced(params, {**new, **weights})
      return observation.loss(moved_params, rest)

    before = layers.chosen(step.grads, layer.weights)
    # No layer moves before the first layer, and both gradients are equal.
    after = jax.grad(loss)(weights) if moved else before
    found |= {
      f'{layer.name}/{name}': value
      for name, value in _compare(before, after).items()
    }
    moved += [*layer.weights, *layer.others]
  return found


def _compare(
  before: dict[int, jax.Array], after: dict[int, jax.Array]
) -> dict[str, jax.Array]:
  """Returns distance and cosine of two gradients, and the norm of `before`."""
  a, b = (
    # JAX sorts the keys of a dict, and the order of the two dicts may differ.
    jnp.concatenate([grads[k].astype(jnp.float32).ravel() for k in before])
    for grads in (before, after)
  )
  norms = jnp.linalg.norm(a) * jnp.linalg.norm(b)
  # A gradient of zero has no direction. The cosine is then 1, as for two equal
  # gradients.
  cosine = jnp.where(norms > 0, a @ b / jnp.where(norms > 0, norms, 1), 1)
  return {
    'distance': jnp.linalg.norm(a - b),
    'cosine': cosine,
    'gradient': jnp.linalg.norm(a),
  }
