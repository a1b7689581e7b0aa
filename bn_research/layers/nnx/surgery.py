"""Changing the normalizations of an nnx model, keeping what carries over."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import norms
from bn_research.layers import drop_in
from bn_research.layers.nnx.norm import Norm
from bn_research.layers.nnx.promotion import value
from bn_research.norms import combine

Path = tuple[Any, ...]
Change = Callable[[norms.Normalization], norms.Normalization]


def normalizations(model: nnx.Module) -> Iterator[tuple[Path, nnx.Module]]:
  """Yields path and layer of each `Norm` and each `BatchNorm`."""
  for path, module in list(nnx.iter_modules(model)):
    if isinstance(module, Norm | nnx.BatchNorm):
      yield path, module


def replace(
  model: nnx.Module,
  change: Change,
  where: Callable[[Path], bool] = lambda path: True,
) -> None:
  """Replaces normalizations in a model, in place.

  Scale, bias, what else is learned, and running statistics carry over where
  the new one means the same by them; what it has beside starts afresh. So do
  `dtype` and `param_dtype`. A layer that the model has in several places stays
  one layer.

  Args:
    model: Its layers `Norm` and `BatchNorm`, Flax's own too, are replaced by
      `Norm`.
    change: From the normalization of a layer to the new one, such as
      `norms.freeze`, `lambda _: norms.group_norm(8)`, or
      `lambda norm: norms.sync(norm, 'data')`.
    where: Which layers, by path; all of them by default.

  Raises:
    ValueError: If there is no such layer.
  """
  known = [_places(model, path) for path, _ in normalizations(model)]
  chosen = [places for places in known if any(map(where, places))]
  if not chosen:
    raise ValueError(
      f'no normalization to replace; the model has them at: {known}.'
    )
  if ((),) in chosen:
    raise ValueError(
      'the model is itself a normalization, which nothing holds in place of '
      'which to put another; give the module that holds it.'
    )
  for places in chosen:
    old = as_norm(at(model, places[0]))
    new = _carried(old, change(old.normalization))
    for place in places:
      _set_child(at(model, place[:-1]), place[-1], new)


def _places(model: nnx.Module, path: Path) -> tuple[Path, ...]:
  """Returns all paths to the module at a path."""
  for places in nnx.find_duplicates(model, only=nnx.Module):
    if path in places:
      return tuple(places)
  return (path,)


def as_norm(layer: nnx.Module) -> Norm:
  """Returns the `Norm` that does what a `BatchNorm` does, sharing nothing."""
  if isinstance(layer, Norm):
    return layer
  assert isinstance(layer, nnx.BatchNorm)
  if not isinstance(layer.axis, int) or layer.axis != -1:
    raise ValueError(
      f'axis={layer.axis}: only a BatchNorm with features on the last axis '
      'becomes another normalization; move the features there.'
    )
  normalization = drop_in.batch_norm(layer, 2)
  scope: Any = normalization.scope
  scope = dataclasses.replace(scope, axis=-1)
  norm = Norm(
    dataclasses.replace(normalization, scope=scope),
    layer.num_features,
    use_running_average=bool(layer.use_running_average),
    use_scale=layer.use_scale,
    use_bias=layer.use_bias,
    dtype=layer.dtype,
    param_dtype=layer.param_dtype,
    rngs=nnx.Rngs(0),
  )
  _keep(norm, 'scale', value(layer.scale))
  _keep(norm, 'bias', value(layer.bias))
  mean, var = layer.mean[...], layer.var[...]
  norm.statistics.mean.set_value(mean)
  norm.statistics.var.set_value(var)
  steps = drop_in.steps_behind(mean, var, layer.momentum)
  norm.statistics.steps.set_value(steps)
  return norm


def _carried(old: Norm, normalization: norms.Normalization) -> Norm:
  new = Norm(
    normalization,
    old.num_features,
    use_running_average=old.use_running_average,
    use_scale=old.scale is not None,
    use_bias=old.bias is not None,
    dtype=old.dtype,
    param_dtype=old.param_dtype,
    rngs=nnx.Rngs(0),
  )
  _keep(new, 'scale', value(old.scale))
  _keep(new, 'bias', value(old.bias))
  _keep_alike(old.learned, new.learned)
  if _meaning(old) == _meaning(new):
    for was, now in zip(_states(old), _states(new), strict=True):
      for name in norms.Running._fields:
        if hasattr(now, name):
          getattr(now, name).set_value(getattr(was, name)[...])
    _keep_alike(old.statistics, new.statistics)
  return new


def _states(norm: Norm) -> list[Any]:
  parts = combine.with_states(norm.normalization, norm.statistics)
  return [state for _, state in parts]


def _meaning(norm: Norm) -> list[tuple[Any, ...]]:
  """What `mean` and `var` are, for each part; shapes alone do not tell.

  A variance is not a mean square, and a covariance not its root.
  """
  return [
    _meaning_of(*part)
    for part in combine.with_states(norm.normalization, norm.statistics)
  ]


def _meaning_of(part: Any, statistics: Any) -> tuple[Any, ...]:
  map = getattr(part, 'map', None)
  var = getattr(statistics, 'var', None)
  shape = None if var is None else var.shape
  about = getattr(map, 'centre', None), getattr(map, 'remembered', None)
  return type(map), *about, shape


def _keep_alike(old: Any, new: Any) -> None:
  """Copies the arrays of one tree of variables to another of its kind."""

  def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree, is_leaf=_is_variable)

  if shapes(old) == shapes(new):
    jax.tree.map(
      lambda was, now: now.set_value(was[...]), old, new, is_leaf=_is_variable
    )


def _is_variable(node: Any) -> bool:
  return isinstance(node, nnx.Variable)


def _keep(norm: Norm, name: str, array: jax.Array | None) -> None:
  if array is not None:
    getattr(norm, name).set_value(array)


def fold(model: nnx.Module, pairs: dict[Path, Path]) -> None:
  """Folds normalizations into the layers before them, for inference, in place.

  Args:
    model: The model. The folded normalizations become none.
    pairs: From the path of each normalization to that of the `nnx.Linear` or
      `nnx.Conv` whose output it normalizes.

  Raises:
    ValueError: If one remembers nothing, and so is not affine, or mixes outputs
      that see different inputs.
  """
  for norm_path, layer_path in pairs.items():
    norm = as_norm(at(model, norm_path))
    if not norm.normalization.remembers:
      raise ValueError(
        f'{norm_path}: {norm.normalization} depends on the example at '
        'inference too, so it cannot be folded into a kernel.'
      )
    layer = at(model, layer_path)
    # A transposed kernel has its outputs before its inputs.
    turned = getattr(layer, 'transpose_kernel', False)
    turn = partial(jnp.swapaxes, axis1=-1, axis2=-2) if turned else lambda k: k
    kernel, bias = norms.fold(
      turn(_unmasked(layer)),
      value(layer.bias),
      norm.normalization,
      state_of(norm),
      value(norm.scale),
      value(norm.bias),
      getattr(layer, 'feature_group_count', 1),
    )
    layer.kernel.set_value(turn(kernel))
    layer.bias = nnx.Param(bias)
    layer.use_bias = True
    none = Norm(
      norms.none(),
      norm.num_features,
      use_bias=False,
      dtype=norm.dtype,
      rngs=nnx.Rngs(0),
    )
    _set_child(at(model, norm_path[:-1]), norm_path[-1], none)


def _unmasked(layer: Any) -> jax.Array:
  """Moves the mask of a convolution into its kernel, which it returns.

  A whitening gives what is masked in one output some of another's.
  """
  kernel = layer.kernel[...]
  if (mask := getattr(layer, 'mask', None)) is None:
    return kernel
  layer.mask = None
  return kernel * mask


def state_of(norm: Norm) -> Any:
  """Returns the state of the normalization of a layer."""
  return jax.tree.map(
    lambda variable: variable[...],
    norm.statistics,
    is_leaf=_is_variable,
  )


def forget(norm: Norm) -> None:
  """Puts the statistics of a layer where they were before the first batch."""
  start = norm.normalization.init(norm.num_features)
  jax.tree.map(
    lambda variable, value: variable.set_value(value),
    norm.statistics,
    start,
    is_leaf=_is_variable,
  )


def at(model: Any, path: Path) -> Any:
  """Returns the module at a path."""
  for key in path:
    model = _child(model, key)
  return model


def _child(parent: Any, key: Any) -> Any:
  return parent[key] if isinstance(key, int) else getattr(parent, key)


def _set_child(parent: Any, key: Any, child: nnx.Module) -> None:
  if isinstance(key, int):
    parent[key] = child
  else:
    setattr(parent, key, child)
