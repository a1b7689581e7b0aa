"""Norms of gradients, updates and parameters for each module."""

import jax
import optax

from bn_research import trees
from bn_research.probes.observation import Observation


def gradients(observation: Observation) -> dict[str, jax.Array]:
  """Measures the norms of each module with parameters.

  Args:
    observation: The network, a mini-batch, and the step on this mini-batch.

  Returns:
    Three l2 norms, () float32, for each module: `'dense/0/gradient'`,
    `'dense/0/update'` and `'dense/0/parameters'`. The parameters are the
    parameters before the step.
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
