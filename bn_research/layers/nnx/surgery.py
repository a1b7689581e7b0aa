"""Changing the normalizations of an nnx model, keeping what carries over."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
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

  Scale, bias, what else is learned, and running statistics of the same shape
  carry over; what the new one remembers beside starts afresh.

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
  known = [path for path, _ in normalizations(model)]
  paths = list(filter(where, known))
  if not paths:
    raise ValueError(
      f'no normalization to replace; the model has them at: {known}.'
    )
  for path in paths:
    parent = _at(model, path[:-1])
    old = as_norm(_child(parent, path[-1]))
    _set_child(parent, path[-1], _carried(old, change(old.normalization)))


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
    param_dtype=layer.param_dtype,
    rngs=nnx.Rngs(0),
  )
  _keep(norm, 'scale', value(layer.scale))
  _keep(norm, 'bias', value(layer.bias))
  norm.statistics.mean.set_value(layer.mean[...])
  norm.statistics.var.set_value(layer.var[...])
  return norm


def _carried(old: Norm, normalization: norms.Normalization) -> Norm:
  new = Norm(
    normalization,
    old.num_features,
    use_running_average=old.use_running_average,
    use_scale=old.scale is not None,
    use_bias=old.bias is not None,
    rngs=nnx.Rngs(0),
  )
  _keep(new, 'scale', value(old.scale))
  _keep(new, 'bias', value(old.bias))
  states = (
    combine.with_states(norm.normalization, norm.statistics)
    for norm in (old, new)
  )
  for (_, was), (_, now) in zip(*states, strict=False):
    for name in norms.Running._fields:
      _copy(getattr(was, name, None), getattr(now, name, None))
  if _structure(old.learned) == _structure(new.learned):
    pairs = zip(_variables(old.learned), _variables(new.learned), strict=True)
    for was, now in pairs:
      _copy(was, now)
  return new


def _copy(was: nnx.Variable | None, now: nnx.Variable | None) -> None:
  if was is not None and now is not None and was.shape == now.shape:
    now.set_value(was[...])


def _variables(tree: Any) -> list[nnx.Variable]:
  return jax.tree.leaves(tree, is_leaf=lambda n: isinstance(n, nnx.Variable))


def _structure(tree: Any) -> Any:
  return jax.tree.structure(tree, is_leaf=lambda n: isinstance(n, nnx.Variable))


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
    ValueError: If one remembers nothing, and so is not affine.
  """
  for norm_path, layer_path in pairs.items():
    norm = as_norm(_at(model, norm_path))
    if not norm.normalization.remembers:
      raise ValueError(
        f'{norm_path}: {norm.normalization} depends on the example at '
        'inference too, so it cannot be folded into a kernel.'
      )
    layer = _at(model, layer_path)
    kernel, bias = norms.fold(
      layer.kernel[...],
      value(layer.bias),
      norm.normalization,
      state_of(norm),
      value(norm.scale),
      value(norm.bias),
    )
    layer.kernel.set_value(kernel)
    layer.bias = nnx.Param(bias)
    layer.use_bias = True
    none = Norm(
      norms.none(), norm.num_features, use_bias=False, rngs=nnx.Rngs(0)
    )
    _set_child(_at(model, norm_path[:-1]), norm_path[-1], none)


def state_of(norm: Norm) -> Any:
  """Returns the state of the normalization of a layer."""
  return jax.tree.map(
    lambda variable: variable[...],
    norm.statistics,
    is_leaf=lambda node: isinstance(node, nnx.Variable),
  )


def _at(model: Any, path: Path) -> Any:
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
