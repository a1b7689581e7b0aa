"""What the backward pass keeps of the forward pass."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name


def recomputed(f):
  """Recomputes `f` in the backward pass, so that only its inputs are kept."""
  return jax.checkpoint(f, prevent_cse=False)


def statistics(tree: Any) -> Any:
  """Names arrays that are small and dear: moments, roots, their factors.

  A `jax.checkpoint` with the policy `save_only_these_names('statistics')`, such
  as `keeping_statistics`, does no collective and no decomposition again.
  """
  return jax.tree.map(lambda leaf: checkpoint_name(leaf, 'statistics'), tree)


def keeping_statistics(f):
  """Recomputes `f`, but for its statistics, in the backward pass."""
  policy = jax.checkpoint_policies.save_only_these_names('statistics')
  return jax.checkpoint(f, policy=policy)
