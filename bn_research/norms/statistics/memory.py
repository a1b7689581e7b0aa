"""Which results of the forward pass the backward pass keeps."""

import jax

from bn_research.norms.roots.tags import STATISTICS


def rematerialized(f):
  """Returns `f` with a backward pass that keeps only the inputs.

  The backward pass computes `f` again.
  """
  # The default barriers against common subexpression elimination would also
  # stop XLA from fusing the repeated elementwise work.
  return jax.checkpoint(f, prevent_cse=False)


def rematerialized_but_statistics(f):
  """Returns `f` with a backward pass that keeps inputs and tagged statistics.

  The backward pass computes the rest of `f` again.
  """
  # Statistics are small, and a repetition would repeat their collectives.
  policy = jax.checkpoint_policies.save_only_these_names(STATISTICS)
  return jax.checkpoint(f, policy=policy)
