"""What the backward pass keeps of the forward pass."""

import jax

from bn_research.norms.roots.tags import STATISTICS


def rematerialized(f):
  """Computes `f` again in the backward pass, which then keeps only inputs."""
  return jax.checkpoint(f, prevent_cse=False)


def rematerialized_but_statistics(f):
  """Computes `f` again in the backward pass, except its tagged statistics."""
  policy = jax.checkpoint_policies.save_only_these_names(STATISTICS)
  return jax.checkpoint(f, policy=policy)
