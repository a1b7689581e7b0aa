"""Changing the normalizations of a linen model: its variable trees.

A linen model is a recipe, so that it is changed by making it with another norm:
one of `norms.freeze`, `norms.sync`, or another factory. Here is what takes the
variables along.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from bn_research import norms
from bn_research.layers import drop_in

Path = tuple[str, ...]
Variables = Mapping[str, Any]


def carry(old: Variables, new: Variables) -> Variables:
  """Returns `new` with every array of `old` that has its path and shape.

  Of running statistics only all of a layer are taken, or none; the two layers
  must mean the same by them. Those of Flax's `BatchNorm`, which counts no
  updates, count as a trained average's.

  Args:
    old: Variables of the model as it was.
    new: Variables of the model as it is to be, from `init`.

  Returns:
    Variables of the tree of `new`.
  """
  known = traverse_util.flatten_dict(dict(old))
  fresh = traverse_util.flatten_dict(dict(new))
  shapes = partial(jax.tree.map, jnp.shape)
  fits = {
    path: path in known and shapes(known[path]) == shapes(leaf)
    for path, leaf in fresh.items()
  }
  carried = {
    path: _carried(path, leaf, known, fits) for path, leaf in fresh.items()
  }
  return traverse_util.unflatten_dict(carried)


def _carried(path: Path, leaf: Any, known: dict[Path, Any], fits) -> Any:
  """Returns what becomes of one array of the new variables."""
  mean, var = ((*path[:-1], name) for name in ('mean', 'var'))
  if path[0] == 'batch_stats' and not (
    fits.get(mean, True) and fits.get(var, True)
  ):
    return leaf
  if fits[path]:
    return known[path]
  is_count = path[0] == 'batch_stats' and path[-1] == 'steps'
  if is_count and mean in known:
    return drop_in.steps_behind(known[mean], known[var])
  return leaf


def fold(
  variables: Variables,
  pairs: Mapping[Path, Path],
  normalization: norms.Normalization,
  *,
  feature_group_count: int | None = None,
) -> Variables:
  """Folds normalizations into the layers before them, for inference.

  Args:
    variables: Of a model with this normalization, `Norm` or `BatchNorm`.
    pairs: From the path of each normalization to that of the `Dense` or `Conv`
      whose output it normalizes. Of a masked `Conv`, which no variable tells,
      mask the kernel first, and leave the mask out afterwards.
    normalization: What the layers do.
    feature_group_count: That of the convolutions, which no variable tells; it
      matters for whitening only, and is asked for there. Pairs of different
      counts take a call each.

  Returns:
    Variables of the model with `norms.none()` and no bias in its place, and a
    bias in the layers before.

  Raises:
    ValueError: If there is no such normalization or layer, or it remembers
      nothing, and so is not affine; or it mixes outputs of a convolution that
      see different inputs, or whose groups are not given.
  """
  if not isinstance(normalization, norms.Normalization):
    raise ValueError(
      f'{normalization} is not a norms.Normalization; only one of those is '
      'folded: give its parts as layers of their own.'
    )
  population = normalization.population
  if population is None:
    raise ValueError(
      f'{normalization} depends on the example at inference too, so it cannot '
      'be folded into a kernel.'
    )
  flat = dict(traverse_util.flatten_dict(dict(variables)))
  for norm_path, layer_path in pairs.items():
    kernel_path = ('params', *layer_path, 'kernel')
    if (
      kernel_path not in flat or ('batch_stats', *norm_path, 'mean') not in flat
    ):
      raise ValueError(
        f'no normalization at {norm_path} after a kernel at {layer_path}; the '
        f'variables are: {["/".join(path) for path in flat]}.'
      )
    statistics = _pop(flat, ('batch_stats', *norm_path))
    affine = _pop(flat, ('params', *norm_path))
    bias_path = ('params', *layer_path, 'bias')
    flat[kernel_path], flat[bias_path] = norms.fold(
      flat[kernel_path],
      flat.get(bias_path),
      normalization,
      population.init(statistics['mean'], statistics['var']),
      affine.get('scale'),
      affine.get('bias'),
      feature_group_count,
    )
  return traverse_util.unflatten_dict(flat)


def _pop(flat: dict[Path, jax.Array], prefix: Path) -> dict[str, jax.Array]:
  """Takes out all arrays right below a path, and returns them by name."""
  names = [path for path in flat if path[:-1] == prefix]
  return {path[-1]: flat.pop(path) for path in names}
