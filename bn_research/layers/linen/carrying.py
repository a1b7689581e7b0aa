"""Keeps the variables of a linen model whose normalizations change."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from bn_research import norms
from bn_research.layers import calls
from bn_research.norms import Running, checks
from bn_research.norms.populations.running import continued

Path = tuple[str, ...]
Variables = Mapping[str, Any]
Arrays = dict[str, Any]

# Statistics that wait for a batch. The initial values are right for a new
# population: nothing waits.
_PENDING = {'pending', 'seen'}


def carry(
  old: Variables,
  new: Variables,
  normalization: norms.Normalization | None = None,
) -> Variables:
  """Copies the arrays of `old` into `new` if path and shape agree.

  The running statistics of a layer are copied all together or not at all. The
  caller makes sure that both layers give mean and variance the same meaning.
  The populations may differ: the weight of the old average becomes the weight
  of the new population. A pool, such as `Pooled`, starts afresh, because an
  average does not tell a number of activations. The statistics of Flax's
  `BatchNorm`, which counts no updates, get the weight of the average of a
  trained model. The partitioning of an array comes from `new`, or from `old` if
  `new` has no partitioning.

  Args:
    old: Variables of the model before the change. The variables may come from a
      checkpoint, with dicts in place of named tuples.
    new: Variables of the changed model, from `init`.
    normalization: The new normalization. Only a population such as `Interval`
      needs the argument: the normalization makes the matrices, or further
      arrays, that normalize. Without the argument, such a layer starts afresh.

  Returns:
    Variables with the tree of `new`.
  """
  known = traverse_util.flatten_dict(dict(old))
  fresh = traverse_util.flatten_dict(dict(new))
  carried = {
    path: _copied(known.get(path), leaf) for path, leaf in fresh.items()
  }
  layers = [path[:-1] for path in fresh if path[-1] == 'mean']
  for layer in layers:
    after = {p[-1]: leaf for p, leaf in fresh.items() if p[:-1] == layer}
    if layer[0] == 'batch_stats' and 'var' in after:
      before = _restored(_below(old, layer), after)
      for name, leaf in _statistics(before, after, normalization).items():
        carried[(*layer, name)] = leaf
  return traverse_util.unflatten_dict(carried)


def _statistics(
  old: Arrays, new: Arrays, normalization: norms.Normalization | None
) -> Arrays:
  """Returns the statistics that a layer continues from.

  Args:
    old: The statistics of the old layer, by name.
    new: The initial statistics of the new layer, by name.
    normalization: The new normalization, or None.
  """
  # A copied mean with a fresh variance would be no statistics of any model.
  if any(_shapes(old.get(n)) != _shapes(new[n]) for n in ('mean', 'var')):
    return new
  copied = {name: _copied(old.get(name), leaf) for name, leaf in new.items()}
  if old.keys() >= new.keys() and all(
    _shapes(old[name]) == _shapes(leaf) for name, leaf in new.items()
  ):
    return copied
  fresh = _running(new)
  running = continued(_running(old), fresh)
  if running is fresh:
    return new
  state: Any = running
  # The initial matrices of an `Interval` would normalize until the next
  # renewal, though mean and variance are trained.
  if not new.keys() <= _PENDING.union(Running._fields):
    if normalization is None or normalization.population is None:
      return new
    state = normalization.population.resume(running, normalization.map)
  made = {n: leaf for n, leaf in state._asdict().items() if n in new}
  # Mean and variance may have a partitioning in `old` only.
  return copied | {
    name: in_the_box_of(new[name], leaf)
    for name, leaf in made.items()
    if name not in ('mean', 'var')
  }


def _running(statistics: Arrays) -> Running:
  """Returns the statistics of a layer, with counts also for a Flax layer."""
  values = nn.meta.unbox(statistics)
  # With counts of 0 a debiased average would forget trained statistics.
  weight = calls.weight_of(values['mean'], values['var'])
  counts = {'steps': weight, 'skipped': 0 * weight, 'weight': weight} | values
  return Running(*(counts[name] for name in Running._fields))


def _restored(old: Any, new: Arrays) -> Arrays:
  """Returns the statistics of a layer with the named tuples of `new`."""
  return {
    name: checks.restored(leaf, new[name]) if name in new else leaf
    for name, leaf in old.items()
  }


def _below(variables: Variables, path: Path) -> Any:
  for key in path:
    variables = variables.get(key, {})
  return variables


def _copied(old: Any, new: Any) -> Any:
  """Returns `old` if the shapes agree, and `new` if not."""
  return in_the_box_of(new, old) if _shapes(old) == _shapes(new) else new


def _shapes(leaf: Any) -> Any:
  return jax.tree.map(jnp.shape, nn.meta.unbox(leaf))


def in_the_box_of(new: Any, old: Any) -> Any:
  """Returns the arrays of `old`, with the partitioning of `new` if any."""
  if not isinstance(new, nn.meta.AxisMetadata):
    return old
  return new.replace_boxed(nn.meta.unbox(old))
