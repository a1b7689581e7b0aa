"""A tag marks the arrays for a checkpoint policy to save."""

from functools import partial
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

STATISTICS = 'statistics'


def tag_statistics(tree: Any) -> Any:
  """Tags arrays that are small but expensive to recompute.

  Moments, roots and the factors of roots carry the tag. A `jax.checkpoint`
  with the policy `save_only_these_names('statistics')` saves the tagged arrays.
  The backward pass then repeats no collective and no decomposition.

  Args:
    tree: A pytree of arrays, of any shapes and dtypes.

  Returns:
    A pytree of the same structure, with equal arrays.
  """
  return jax.tree.map(partial(checkpoint_name, name=STATISTICS), tree)
