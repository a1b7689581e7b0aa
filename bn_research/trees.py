"""Names the leaves of parameter trees by module."""

from typing import Any

import jax


def by_module(tree: Any) -> dict[str, dict[str, jax.Array]]:
  """Groups the leaves of a tree by the path of the module of the leaf.

  Args:
    tree: A pytree of parameters. The last key in the path of a leaf names the
      parameter, and the keys before the last key name the module.

  Returns:
    A dict of dicts, for example `{'dense/0': {'kernel': ..., 'bias': ...}}`.
  """
  modules: dict[str, dict[str, jax.Array]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    modules.setdefault(name_of(path[:-1]), {})[name_of(path[-1:])] = leaf
  return modules


def name_of(path: Any) -> str:
  """Returns a key path of JAX as text, for example `'dense/0'`.

  Args:
    path: A tuple of keys, as `jax.tree_util.tree_leaves_with_path` gives.
  """
  return jax.tree_util.keystr(path, simple=True, separator='/')
