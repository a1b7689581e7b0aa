"""Keeps the variables of a layer whose normalization changes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import norms
from bn_research.layers import calls, flax_words
from bn_research.layers.nnx.norm import Norm, initial_statistics
from bn_research.layers.nnx.promotion import array_of, is_variable
from bn_research.norms import combine

Shape = tuple[int, ...]


def as_norm(layer: nnx.Module) -> Norm:
  """Returns a `Norm` with the normalization and the variables of a `BatchNorm`.

  Args:
    layer: A `Norm`, which is returned unchanged, or a `BatchNorm`.

  Returns:
    A `Norm`, which shares the variables with the layer.

  Raises:
    ValueError: If the features of a `BatchNorm` are not on the last axis.
  """
  if isinstance(layer, Norm):
    return layer
  assert isinstance(layer, nnx.BatchNorm)
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
    raise _unexplained(layer.num_features, [layer.mean[...], layer.var[...]])
  # Shared variables keep metadata, such as a sharding.
  norm.scale, norm.bias = nnx.data(layer.scale), nnx.data(layer.bias)
  weight = calls.weight_of(layer.mean[...], layer.var[...])
  # The counts are `steps`, `skipped` and `weight`. Each has a separate array,
  # because a buffer cannot be donated twice.
  counts = [nnx.BatchStat(n) for n in (weight, 0 * weight, jnp.copy(weight))]
  variables: list[Any] = [layer.mean, layer.var, *counts]
  norm.statistics = nnx.data(norms.Running(*variables))
  return norm


def with_normalization(old: Norm, normalization: norms.Normalizer) -> Norm:
  """Returns a copy of a layer with a different normalization.

  Scale and bias carry over. Statistics and learned arrays carry over if the
  shapes, and the meaning of the statistics, are the same.

  Args:
    old: The layer, which is not changed.
    normalization: The new normalization.

  Returns:
    A layer of the same class.

  Raises:
    ValueError: If the arrays of the layer have unexpected shapes.
  """
  leading = _stacked_along(old)
  new = nnx.clone(old)
  new.set_normalization(normalization, leading)
  _keep_alike(old.learned, new.learned)
  if _meaning(old) == _meaning(new):
    for was, now in zip(_states(old), _states(new), strict=True):
      _carry_state(*was, *now)
  return new


def _carry_state(old_part: Any, was: Any, part: Any, now: Any) -> None:
  """Copies the variables of a state, and makes the state fit its population."""
  population = getattr(part, 'population', None)
  unit, old_unit = (
    getattr(getattr(p, 'population', None), 'unit', 'share')
    for p in (part, old_part)
  )
  if unit == 'activations' != old_unit:
    return  # Nobody knows how many activations an average has seen.
  count = len(norms.Running._fields)
  for before, after in zip(was[:count], now[:count], strict=True):
    if before.shape == after.shape:
      after.copy_from(before)
  if unit != old_unit:
    # A share of an average is not a number of batches.
    steps = now.steps[...]
    now.weight.set_value(
      jnp.copy(steps) if unit == 'batches' else jnp.minimum(steps, 1)
    )
  if type(was) is type(now):
    _keep_alike(was[count:], now[count:])
  elif population is not None:
    # What a population keeps beside the average must fit the average.
    running = norms.Running(*(variable[...] for variable in now[:count]))
    state = population.resume(running, part.map)
    for variable, leaf in zip(
      _variables(now[count:]), jax.tree.leaves(state[count:]), strict=True
    ):
      variable.set_value(leaf)


def _stacked_along(norm: Norm) -> Shape:
  """Returns the leading axes along which models are stacked, () for one model.

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
    raise _unexplained(norm.num_features, found)
  return leading.pop() if leading else ()  # type: ignore[return-value]


def _unexplained(num_features: int, found: list[jax.Array]) -> ValueError:
  return ValueError(
    f'the arrays of a layer of num_features={num_features} have shapes '
    f'{[leaf.shape for leaf in found]}; change a layer only as the constructor '
    'makes the layer, or stacked along leading axes.'
  )


def _states(norm: Norm) -> list[tuple[Any, Any]]:
  """Returns each part that remembers, with the variables of its state."""
  return list(combine.with_states(norm.normalization, norm.statistics))


def _meaning(norm: Norm) -> list[tuple[Any, ...]]:
  """Returns the meaning of `mean` and `var` in each part of a layer.

  Shapes alone do not show the meaning: variances and mean squares have the same
  shape, and covariances and whitening matrices do too.
  """
  return [
    _meaning_of(*part)
    for part in combine.with_states(norm.normalization, norm.statistics)
  ]


def _meaning_of(part: Any, statistics: Any) -> tuple[Any, ...]:
  map_ = getattr(part, 'map', None)
  var = getattr(statistics, 'var', None)
  shape = None if var is None else var.shape
  about = getattr(map_, 'centre', None), getattr(map_, 'average', None)
  return type(map_), *about, shape


def _keep_alike(old: Any, new: Any) -> None:
  """Copies the variables of a tree to a tree with the same shapes, if any."""
  shapes = [
    jax.tree.map(jnp.shape, jax.tree.map(array_of, tree, is_leaf=is_variable))
    for tree in (old, new)
  ]
  if shapes[0] == shapes[1]:
    for was, now in zip(_variables(old), _variables(new), strict=True):
      now.copy_from(was)


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


def forget(norm: Norm) -> None:
  """Resets the statistics of a layer to the state before the first batch."""
  start = initial_statistics(norm, norm.normalization, _stacked_along(norm))
  set_state(norm, start)
