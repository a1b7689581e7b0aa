"""Trees of parameters, by the names of modules."""

from typing import Any

import jax


def by_module(tree: Any) -> dict[str, dict[str, jax.Array]]:
  """Groups the leaves of a tree by the path of the module that holds them.

  Returns:
    Such as `{'dense/0': {'kernel': ..., 'bias': ...}}`.
  """
  modules: dict[str, dict[str, jax.Array]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    modules.setdefault(name_of(path[:-1]), {})[name_of(path[-1:])] = leaf
  return modules


def name_of(path: Any) -> str:
  """Returns a path of JAX as text, such as `'dense/0'`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')
