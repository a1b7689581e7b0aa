"""Exact population statistics: measured over a data set, after training."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx

from bn_research import norms
from bn_research.layers.nnx import surgery
from bn_research.layers.nnx.norm import Norm
from bn_research.norms import combine

Call = Callable[[nnx.Module, Any], Any]


def reestimate(
  model: nnx.Module,
  batches: Callable[[], Iterable[Any]],
  call: Call,
  *,
  in_order: bool = True,
) -> None:
  """Measures all running moments over a data set, in place.

  The moments of all batches are pooled exactly, what differs between them
  included (`norms.Pooled`). Batches may be sharded over a mesh.

  A layer's moments depend on what the layers before it do. In order, each is
  measured with those before it as they are at inference, with moments measured
  already, as Algorithm 2 has it: a pass over the data for each layer. Not in
  order, all are measured in one pass, each behind layers that normalize by the
  batch: cheaper, and not quite the network of inference. So are, in order too,
  the parts of one combination, such as the passes of a refined whitening.

  Args:
    model: With layers `Norm` or `BatchNorm`, in the order of their calls.
    batches: Called for each pass; returns the batches.
    call: Called as `call(model, batch)`: the forward pass in training mode.
    in_order: Whether layer by layer.

  Raises:
    ValueError: If nothing in the model remembers, what does is not made of
      `norms.Normalization`s, or it met no batch.

  Source: Ioffe and Szegedy (2015), Algorithm 2.
  """
  paths = [
    path
    for path, layer in surgery.normalizations(model)
    if not isinstance(layer, Norm) or layer.normalization.remembers
  ]
  if not paths:
    raise ValueError('no normalization in the model has running statistics.')
  if not in_order:
    _install(model, _measured(model, set(paths), set(), batches, call))
    return
  for k, path in enumerate(paths):
    _install(model, _measured(model, {path}, set(paths[:k]), batches, call))


def _measured(model, measured, frozen, batches, call) -> dict[Any, Any]:
  """Returns the moments, by path, of a pass over the data."""
  probe = nnx.clone(model)
  surgery.replace(probe, _pooled, measured.__contains__)
  for path, layer in surgery.normalizations(probe):
    if path in measured and isinstance(layer, Norm):
      surgery.forget(layer)
  if frozen:
    surgery.replace(probe, norms.freeze, frozen.__contains__)
  graphdef, state = nnx.split(probe)

  @jax.jit
  def advance(state, batch):
    merged = nnx.merge(graphdef, state, copy=True)
    call(merged, batch)
    return nnx.split(merged)[1]

  for batch in batches():
    state = advance(state, batch)
  nnx.update(probe, state)
  for path in measured:
    _require_moved(path, surgery.at(probe, path))
  return {
    path: surgery.state_of(layer)
    for path, layer in surgery.normalizations(probe)
    if path in measured and isinstance(layer, Norm)
  }


def _require_moved(path, layer) -> None:
  parts = combine.with_states(layer.normalization, layer.statistics)
  if not all(state.steps[...] for _, state in parts):
    raise ValueError(
      f'the normalization at {path} met no batch whose moments are finite; '
      '`batches` must return batches at every call, and `call` must run the '
      'model in training mode (model.train()).'
    )


def _pooled(normalization: Any) -> Any:
  return combine.mapped(_pooled_part, normalization)


def _pooled_part(normalization: Any) -> Any:
  if not normalization.remembers:
    return normalization
  if not isinstance(normalization, norms.Normalization):
    raise ValueError(
      f'{normalization} is not a norms.Normalization, so that its moments '
      'cannot be pooled; leave it out, or run the model in training mode.'
    )
  map: Any = normalization.map
  if isinstance(map, norms.Whiten):
    map = dataclasses.replace(map, remembered='covariance')
  return dataclasses.replace(normalization, map=map, population=norms.Pooled())


def _install(model: nnx.Module, measured: dict[Any, Any]) -> None:
  for path, layer in surgery.normalizations(model):
    if path not in measured:
      continue
    if not isinstance(layer, Norm):  # a BatchNorm holds the variables itself
      _set(layer, measured[path])
      continue
    parts = combine.with_states(layer.normalization, layer.statistics)
    found = combine.with_states(layer.normalization, measured[path])
    for (part, statistics), (_, moments) in zip(parts, found, strict=True):
      map = part.map
      if isinstance(map, norms.Whiten) and map.remembered == 'matrix':
        root = map.root(moments.var, moments.mean.shape[-1])
        moments = moments._replace(var=root)
      _set(statistics, moments)


def _set(statistics: Any, moments: Any) -> None:
  statistics.mean.set_value(moments.mean)
  statistics.var.set_value(moments.var)
