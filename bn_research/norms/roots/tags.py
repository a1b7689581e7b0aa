"""The tag by which a checkpoint policy knows arrays that it should save."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

STATISTICS = 'statistics'


def tag_statistics(tree: Any) -> Any:
  """Tags arrays that are small but expensive to recompute.

  Moments, roots and their factors carry the tag. A `jax.checkpoint` whose
  policy is `save_only_these_names('statistics')` saves the tagged arrays, so
  that the backward pass repeats no collective and no decomposition.

  Args:
    tree: Arrays, in any pytree.

  Returns:
    The same arrays.
  """
  return jax.tree.map(lambda leaf: checkpoint_name(leaf, STATISTICS), tree)
