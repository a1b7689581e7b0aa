"""Internal covariate shift, as Santurkar et al. (2018) define it."""

import jax
import jax.numpy as jnp

from bn_research.probes import layers
from bn_research.probes.observation import Observation


def covariate_shift(observation: Observation) -> dict[str, jax.Array]:
  """Measures how much a layer's gradient changes by steps of earlier layers.

    G  = ∇_{W_i} L(W_1, ..., W_k)
    G' = ∇_{W_i} L(W_1 + ΔW_1, ..., W_{i-1} + ΔW_{i-1}, W_i, ..., W_k)
    shift of layer i = ‖G − G'‖,    cosine = ⟨G, G'⟩ / (‖G‖ ‖G'‖)

  Both gradients are of one batch. ΔW is the step that training takes on this
  batch. All layers together cost about as many gradients as there are layers,
  plus two.

  Args:
    observation: The network, a batch, and the step on this batch.

  Returns:
    For each layer that has a kernel, () float32: `'dense/0/distance'`, the
    shift; and `'dense/0/cosine'`, `'dense/0/gradient'`, where gradient is ‖G‖.
    The first layer has a distance of 0.

  Source: Santurkar et al. (2018), "How Does Batch Normalization Help
  Optimization?", Definition 2.1.
  """
  step = observation.take_step()
  # Where layers moved to new coordinates, old weights are written in these.
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
  """Returns distance and cosine of two gradients, and the norm of the first."""
  a, b = (
    # By key, for JAX returns dicts in the order of their keys.
    jnp.concatenate([grads[k].astype(jnp.float32).ravel() for k in before])
    for grads in (before, after)
  )
  norms = jnp.linalg.norm(a) * jnp.linalg.norm(b)
  # Two gradients of zero have no direction; their cosine is 1, as if equal.
  cosine = jnp.where(norms > 0, a @ b / jnp.where(norms > 0, norms, 1), 1)
  return {
    'distance': jnp.linalg.norm(a - b),
    'cosine': cosine,
    'gradient': jnp.linalg.norm(a),
  }
