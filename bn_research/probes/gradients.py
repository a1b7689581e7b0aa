"""Norms of gradients, updates and parameters, layer by layer."""

import jax
import optax

from bn_research import trees
from bn_research.probes.observation import Observation


def gradients(observation: Observation) -> dict[str, jax.Array]:
  """Measures each module that holds parameters.

  Args:
    observation: The network, a batch, and the step on this batch.

  Returns:
    For each module, () float32: the l2 norms `'dense/0/gradient'`,
    `'dense/0/update'` and `'dense/0/parameters'`, the latter before the step.
  """
  step = observation.take_step()
  quantities = {
    'gradient': step.grads,
    'update': step.updates,
    'parameters': observation.params,
  }
  return {
    f'{module}/{name}': optax.tree.norm(leaves)
    for name, tree in quantities.items()
    for module, leaves in trees.by_module(tree).items()
  }
