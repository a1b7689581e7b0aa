"""Keeps the variables of a linen model whose normalizations change."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from bn_research.layers import calls
from bn_research.layers.linen.leftovers import require_counterparts
from bn_research.norms import Running
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
  normalizations: Mapping[Path, Any] | None = None,
) -> Variables:
  """Copies the arrays of `old` into `new` if path and shape agree.

  The layers of both models need the same names. Automatic names contain the
  class, and `BatchNorm_0` becomes `Norm_0`. A layer that is only in `new` keeps
  the initial arrays, unless a layer is only in `old`: this case is an error.

  The running statistics of a layer are copied all together or not at all. The
  caller makes sure that both layers give mean and variance the same meaning.
  The populations may differ: the weight of the old average becomes the weight
  of the new population. A pool, such as `Pooled`, starts afresh, because an
  average does not tell a number of activations. The statistics of Flax's
  `BatchNorm`, which counts no updates, get the weight of the average of a
  trained model, after one update. The partitioning of an array comes from
  `new`, or from `old` if `new` has no partitioning.

  Args:
    old: Variables of the model before the change. The variables may come from a
      checkpoint, with dicts in place of tuples.
    new: Variables of the changed model, from `init`.
    normalizations: From the path of a layer to the new normalization of the
      layer. Only a population such as `Interval` needs an entry: the map makes
      the matrices, or further arrays, that normalize. Without the entry, these
      arrays are copied from a layer with the same arrays, and start afresh,
      together with the average, in all further cases.

  Returns:
    Variables with the tree of `new`.

  Raises:
    ValueError: If a layer is only in `new`, and a layer is only in `old`.
  """
  require_counterparts(old, new)
  old, given = _restored(old, new), dict(normalizations or {})
  known = traverse_util.flatten_dict(old, keep_empty_nodes=True)
  fresh = traverse_util.flatten_dict(dict(new), keep_empty_nodes=True)
  carried = {
    path: _copied(known.get(path), leaf) for path, leaf in fresh.items()
  }
  statistics = [path for path in fresh if path[0] == 'batch_stats']
  for layer in dict.fromkeys(path[:-1] for path in statistics):
    before, after = (
      {path[-1]: leaf for path, leaf in flat.items() if path[:-1] == layer}
      for flat in (known, fresh)
    )
    normalization = given.get(layer[1:])
    if after.keys() == {'state'}:  # a combination
      state = before.get('state'), after['state']
      carried[(*layer, 'state')] = _of_parts(*state, normalization)
    elif {'mean', 'var'} <= after.keys():
      found = _statistics(before, after, normalization)
      carried.update({(*layer, name): leaf for name, leaf in found.items()})
  return traverse_util.unflatten_dict(carried)


def _of_parts(old: Any, new: Any, normalizer: Any) -> Any:
  """Returns the state of a combination that continues from an old state."""
  if hasattr(new, '_asdict') and hasattr(old, '_asdict'):
    found = _statistics(old._asdict(), new._asdict(), normalizer)
    return type(new)(**found)
  if not isinstance(new, tuple) or not isinstance(old, tuple):
    return new
  if len(old) != len(new):
    return new
  parts = getattr(normalizer, 'parts', (None,) * len(new))
  return tuple(map(_of_parts, old, new, parts))


def _statistics(old: Arrays, new: Arrays, normalization: Any) -> Arrays:
  """Returns the statistics that a layer continues from.

  Args:
    old: The statistics of the old layer, by name.
    new: The initial statistics of the new layer, by name.
    normalization: The new normalization of the layer, or None.
  """
  # A copied mean with a fresh variance would be no statistics of any model.
  if any(_shapes(old.get(n)) != _shapes(new[n]) for n in ('mean', 'var')):
    return new
  copied = {name: _copied(old.get(name), leaf) for name, leaf in new.items()}
  longer = new.keys() - Running._fields - _PENDING
  is_alike = all(
    name in old and _shapes(old[name]) == _shapes(leaf)
    for name, leaf in new.items()
  )
  # A longer state holds what the old map made of the average.
  if is_alike and not (longer and normalization is not None):
    return copied
  fresh = _running(new)
  running = continued(_running(old), fresh)
  if running is fresh:
    return new
  state: Any = running
  # The initial matrices of an `Interval` would normalize until the next
  # renewal, though mean and variance are trained.
  if longer:
    population = getattr(normalization, 'population', None)
    if population is None:
      return new
    resume = lambda running: population.resume(running, normalization.map)
    state = calls.over_models(resume, jnp.ndim(running.steps))(running)
  # Mean and variance may have a partitioning in `old` only.
  made = {n: leaf for n, leaf in state._asdict().items() if n in new}
  del made['mean'], made['var']
  return copied | {
    name: _typed(in_the_box_of(new[name], leaf), new[name])
    for name, leaf in made.items()
  }


def _typed(leaf: Any, like: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), leaf, like)


def _running(statistics: Arrays) -> Running:
  """Returns the statistics of a layer, with counts also for a Flax layer."""
  values = nn.meta.unbox(statistics)
  if 'weight' not in values:
    # With counts of 0 a debiased average would forget trained statistics.
    values |= calls.counts_of(values['mean'], values['var'])
  return Running(*(values[name] for name in Running._fields))


def _restored(old: Any, new: Any) -> Any:
  """Returns `old` with tuples in place of dicts and lists, as in `new`."""
  if isinstance(new, Mapping) and isinstance(old, Mapping):
    return {
      name: _restored(leaf, new[name]) if name in new else leaf
      for name, leaf in old.items()
    }
  if not isinstance(new, tuple) or not isinstance(old, Mapping | list | tuple):
    return old
  names = getattr(new, '_fields', range(len(new)))
  if isinstance(old, Mapping):
    # A checkpoint may leave out an empty entry, and has strings for keys.
    by_name = {str(key): leaf for key, leaf in old.items()}
    old = [
      by_name.get(str(name), like)
      for name, like in zip(names, new, strict=True)
    ]
  if len(old) != len(new):
    return old
  leaves = map(_restored, old, new)
  return type(new)(*leaves) if hasattr(new, '_fields') else tuple(leaves)


def _copied(old: Any, new: Any) -> Any:
  """Returns `old` if the shapes agree, and `new` if not."""
  if old is None or new is traverse_util.empty_node:
    return new
  return in_the_box_of(new, old) if _shapes(old) == _shapes(new) else new


def _shapes(leaf: Any) -> Any:
  return jax.tree.map(jnp.shape, nn.meta.unbox(leaf))


def in_the_box_of(new: Any, old: Any) -> Any:
  """Returns the arrays of `old`, with the partitioning of `new` if any."""
  if not isinstance(new, nn.meta.AxisMetadata):
    return old
  return new.replace_boxed(nn.meta.unbox(old))
