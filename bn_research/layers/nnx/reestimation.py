"""Exact population statistics: measured over a data set, after training."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import norms
from bn_research.layers.nnx import carrying, surgery
from bn_research.layers.nnx.norm import Norm
from bn_research.layers.nnx.tree import Path, at, normalizations
from bn_research.norms import combine

Call = Callable[[nnx.Module, Any], Any]
Batches = Callable[[], Iterable[Any]]


def reestimate(
  model: nnx.Module, batches: Batches, call: Call, *, in_order: bool = True
) -> None:
  """Measures all running moments over a data set, in place.

  The moments of all batches are pooled exactly, the differences between batches
  included (`norms.Pooled`). Batches may be sharded over a mesh.

  The moments of a layer depend on what the layers before it do. In order, each
  layer is measured with the layers before it as they are at inference, with
  moments measured already, as Algorithm 2 has it: a pass over the data for each
  layer. The order is the order of the calls in the forward pass. Not in order,
  all layers are measured in one pass, each behind layers that normalize by the
  batch: cheaper, and not quite the network of inference. The parts of one
  combination, such as the passes of a refined whitening, are always measured
  together.

  Training may go on afterwards: the measured moments weigh as much as the
  average of a trained model does.

  Args:
    model: With layers `Norm` or `BatchNorm`.
    batches: Called for each pass; returns the batches.
    call: Called as `call(model, batch)`: the forward pass in training mode.
    in_order: Whether layer by layer.

  Raises:
    ValueError: If nothing in the model remembers, if what does is not made of
      `norms.Normalization`s or has statistics that do not merge, or if a layer
      met no batch.

  Source: Ioffe and Szegedy (2015), Algorithm 2.
  """
  paths = [
    path
    for path, layer in normalizations(model)
    if not isinstance(layer, Norm) or layer.normalization.remembers
  ]
  if not paths:
    raise ValueError('no normalization in the model has running statistics.')
  if not in_order:
    _adopt(model, _measured(model, set(paths), set(), batches, call))
    return
  paths = _in_order_of_calls(model, paths, batches, call)
  for k, path in enumerate(paths):
    _adopt(model, _measured(model, {path}, set(paths[:k]), batches, call))


@dataclasses.dataclass(frozen=True, eq=False)
class _Noted:
  """A normalizer that notes its path at each call."""

  normalizer: Any
  path: Path
  calls: list[Path]

  def __getattr__(self, name: str) -> Any:
    return getattr(self.normalizer, name)

  def apply(self, *args: Any, **options: Any) -> Any:
    self.calls.append(self.path)
    return self.normalizer.apply(*args, **options)


def _in_order_of_calls(model, paths, batches, call) -> list[Path]:
  """Traces the forward pass once; layers that it leaves out come last."""
  probe = nnx.clone(model)
  noted: list[Path] = []
  for path in paths:
    noting = functools.partial(_Noted, path=path, calls=noted)
    surgery.replace(probe, noting, path.__eq__)
  graphdef, state = nnx.split(probe)

  def run(state, batch):
    call(nnx.merge(graphdef, state, copy=True), batch)

  for batch in batches():
    jax.eval_shape(run, state, batch)
    break
  return list(dict.fromkeys((*noted, *paths)))


def _measured(model, measured, frozen, batches, call) -> dict[Path, Norm]:
  """Returns layers with the moments of a pass over the data, by path."""
  probe = nnx.clone(model)
  surgery.replace(probe, _pooled, measured.__contains__)
  for path in measured:
    carrying.forget(at(probe, path))
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
  layers = {path: at(probe, path) for path in measured}
  for path, layer in layers.items():
    _require_moved(path, layer)
  return layers


def _require_moved(path: Path, layer: Norm) -> None:
  parts = combine.with_states(layer.normalization, carrying.state_of(layer))
  if not all(bool(jnp.all(state.steps > 0)) for _, state in parts):
    raise ValueError(
      f'the normalization at {path} met no batch whose moments are finite; '
      '`batches` must return batches at every call, and `call` must run the '
      'model in training mode (model.train()).'
    )


def _pooled(normalizer: Any) -> Any:
  return combine.mapped(_pooled_part, normalizer)


def _pooled_part(part: Any) -> Any:
  if not part.remembers:
    return part
  if not isinstance(part, norms.Normalization):
    raise ValueError(
      f'{part} is not a norms.Normalization, so that its moments cannot be '
      'pooled; leave it out, or run the model in training mode.'
    )
  return dataclasses.replace(
    part,
    map=part.map.remembering_moments(),
    population=norms.Pooled(),
    gradient=norms.through,
  )


def _adopt(model: nnx.Module, measured: dict[Path, Norm]) -> None:
  """Gives each layer the moments that were measured."""
  for path, found in measured.items():
    layer = at(model, path)
    if not isinstance(layer, Norm):  # a BatchNorm holds the variables itself
      layer.mean.set_value(found.statistics.mean[...])
      layer.var.set_value(found.statistics.var[...])
      continue
    pools = iter(
      pool
      for _, pool in combine.with_states(
        found.normalization, carrying.state_of(found)
      )
    )

    def adopted(part, state, pools=pools):
      pool = next(pools)
      moments = norms.Moments(pool.weight, pool.mean, pool.var)
      moments = moments.with_variance(pool.var)
      return part.population.adopt(state, moments, part.map, pool.steps)

    state = carrying.state_of(layer)
    carrying.set_state(
      layer, combine.mapped_with_states(adopted, layer.normalization, state)
    )
