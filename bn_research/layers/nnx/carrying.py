"""Keeps the variables of a layer whose normalization changes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import norms
from bn_research.layers import calls, flax_words
from bn_research.layers.nnx.batch_norm import require_no_own_code
from bn_research.layers.nnx.norm import Norm, initial_statistics
from bn_research.layers.nnx.promotion import array_of, is_variable
from bn_research.norms import combination
from bn_research.norms.populations.running import continued, running_of

Shape = tuple[int, ...]


def as_norm(layer: nnx.Module) -> Norm:
  """Returns a `Norm` with the normalization and the variables of a `BatchNorm`.

  Args:
    layer: A `Norm`, which is returned unchanged, or a `BatchNorm`.

  Returns:
    A `Norm`, which shares the variables with the layer.

  Raises:
    ValueError: If the features of a `BatchNorm` are not on the last axis, or if
      the `Norm` would lose a method `__call__` or a `promote_dtype` of the
      user.
  """
  if isinstance(layer, Norm):
    return layer
  assert isinstance(layer, nnx.BatchNorm)
  require_no_own_code(layer)
  if layer.axis not in (-1, (-1,)):
    raise ValueError(
      f'axis={layer.axis} of the BatchNorm is not the last axis; move the '
      'features to the last axis, which a Norm expects.'
    )
  normalization, _ = flax_words.batch_norm(layer, 2)
  # For axis=(-1,) the scope has axis 1, which is the last only of two axes.
  scope: Any = dataclasses.replace(normalization.scope, axis=-1)  # type: ignore[type-var]
  norm = Norm(
    dataclasses.replace(normalization, scope=scope),
    layer.num_features,
    use_running_average=bool(layer.use_running_average),
    use_scale=layer.use_scale,
    use_bias=layer.use_bias,
    dtype=layer.dtype,
    param_dtype=layer.param_dtype,
    rngs=nnx.Rngs(0),  # The next lines replace all initial values.
  )
  if layer.mean[...].shape != layer.var[...].shape:
    raise _mismatch(layer.num_features, [layer.mean[...], layer.var[...]])
  # Shared variables keep metadata, such as a sharding.
  norm.scale, norm.bias = nnx.data(layer.scale), nnx.data(layer.bias)
  counts: Any = jax.tree.map(
    nnx.BatchStat, calls.counts_of(layer.mean[...], layer.var[...])
  )
  moments: Any = layer.mean, layer.var
  norm.statistics = nnx.data(norms.Running(*moments, **counts))
  return norm


def with_normalization(old: Norm, normalization: norms.Normalizer) -> Norm:
  """Returns a copy of a layer with a different normalization.

  Both layers share the variables of scale and bias, because further layers of
  the model may share these variables too. Statistics and learned arrays carry
  over if the shapes, and the meaning of the statistics, are the same.

  Args:
    old: The layer, which is not changed.
    normalization: The new normalization.

  Returns:
    A layer of the same class.

  Raises:
    ValueError: If the arrays of the layer have unexpected shapes.
  """
  leading = stacked_along(old)
  new = nnx.clone(old)
  new.set_normalization(normalization, leading)
  new.scale, new.bias = nnx.data(old.scale), nnx.data(old.bias)
  if _shapes(old.learned) == _shapes(new.learned):
    new.learned = nnx.data(old.learned)
  was, now = map(_states, (old, new))
  if [_meaning(*part) for part in was] == [_meaning(*part) for part in now]:
    for before, after in zip(was, now, strict=True):
      _carry_state(*before, *after)
  return new


def _carry_state(old_part: Any, was: Any, part: Any, now: Any) -> None:
  """Copies the variables of a state, and makes the state fit its population.

  Args:
    old_part: The old part of the normalization.
    was: The state of the old part, a tree of variables.
    part: The new part of the normalization.
    now: The state of the new part, a tree of variables, which is changed.
  """
  is_alike = _shapes(was) == _shapes(now) and type(was) is type(now)
  # A longer state holds what the old map made of the average.
  is_short = isinstance(was, norms.Running) or not hasattr(part, 'map')
  if is_alike and (is_short or _is_same(old_part.map, part.map)):
    for before, after in zip(_variables(was), _variables(now), strict=True):
      after.copy_from(before)
    return
  old, fresh = (running_of(jax.tree.map(array_of, s)) for s in (was, now))
  running = continued(old, fresh)
  if running is fresh:
    return
  for before, after in zip(was[: len(running)], now, strict=False):
    if before.shape == after.shape:
      after.copy_from(before)  # with metadata, such as a sharding
  # A longer state, or a different weight, must fit the average.
  resume = lambda running: part.population.resume(running, part.map)
  state = calls.over_models(resume, running.steps.ndim)(running)
  for variable, leaf in zip(
    _variables(now), jax.tree.leaves(state), strict=True
  ):
    variable.set_value(leaf)


def _is_same(old: Any, new: Any) -> bool:
  """Returns whether two maps are surely equal; arrays may be traced."""
  return old is new or (old.is_static and new.is_static and old == new)


def stacked_along(norm: Norm) -> Shape:
  """Returns the leading axes along which models are stacked, () for one model.

  Args:
    norm: The layer.

  Raises:
    ValueError: If the arrays do not all have the same leading axes.
  """
  expected = jax.tree.leaves(
    jax.eval_shape(lambda: initial_statistics(norm, norm.normalization))
  )
  found = [leaf[...] for leaf in _variables(norm.statistics)]
  for parameter in (norm.scale, norm.bias):
    if parameter is not None:
      expected.append(jax.ShapeDtypeStruct((norm.num_features,), 'float32'))
      found.append(parameter[...])
  leading = {
    leaf.shape[: leaf.ndim - len(like.shape)]
    if leaf.shape[leaf.ndim - len(like.shape) :] == like.shape
    else None
    for leaf, like in zip(found, expected, strict=True)
  }
  if None in leading or len(leading) > 1:
    raise _mismatch(norm.num_features, found)
  return leading.pop() if leading else ()  # type: ignore[return-value]


def _mismatch(num_features: int, found: list[jax.Array]) -> ValueError:
  return ValueError(
    f'the arrays of a layer of num_features={num_features} have shapes '
    f'{[leaf.shape for leaf in found]}; change a layer only as the constructor '
    'makes the layer, or stacked along leading axes.'
  )


def _states(norm: Norm) -> list[tuple[Any, Any]]:
  """Returns each part that remembers, with the variables of its state."""
  return list(combination.with_states(norm.normalization, norm.statistics))


def _meaning(part: Any, statistics: Any) -> tuple[Any, ...]:
  """Returns the meaning of `mean` and `var` in a part of a layer.

  Shapes alone do not show the meaning: variances and mean squares have the same
  shape, and covariances and whitening matrices do too.
  """
  map_ = getattr(part, 'map', None)
  var = getattr(statistics, 'var', None)
  shape = None if var is None else var.shape
  about = getattr(map_, 'centre', None), getattr(map_, 'average', None)
  return type(map_), *about, shape


def _shapes(tree: Any) -> Any:
  arrays = jax.tree.map(array_of, tree, is_leaf=is_variable)
  return jax.tree.map(jnp.shape, arrays)


def _variables(tree: Any) -> list[Any]:
  return jax.tree.leaves(tree, is_leaf=is_variable)


def state_of(norm: Norm) -> Any:
  """Returns the state of the normalization of a layer, a pytree of arrays."""
  return jax.tree.map(array_of, norm.statistics, is_leaf=is_variable)


def set_state(norm: Norm, state: Any) -> None:
  """Sets the state of the normalization of a layer.

  Args:
    norm: The layer, which is changed in place.
    state: A state with the tree of `state_of(norm)`.
  """
  for variable, leaf in zip(
    _variables(norm.statistics), jax.tree.leaves(state), strict=True
  ):
    variable.set_value(leaf)


def forget(norm: Norm, which: Callable[[Any], bool]) -> None:
  """Resets statistics of a layer to the state before the first batch.

  Args:
    norm: The layer, which is changed in place.
    which: A function from a part of the normalization to whether the statistics
      of the part are reset.
  """
  start = initial_statistics(norm, norm.normalization, stacked_along(norm))
  starts = iter(combination.with_states(norm.normalization, start))

  def reset(part, state):
    _, fresh = next(starts)
    return fresh if which(part) else state

  state = state_of(norm)
  set_state(
    norm, combination.mapped_with_states(reset, norm.normalization, state)
  )
