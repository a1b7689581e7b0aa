"""Measures population statistics over a data set, after training."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import norms
from bn_research.layers import calls
from bn_research.layers.nnx import carrying, passes, surgery
from bn_research.layers.nnx.call_order import Call, in_order_of_calls
from bn_research.layers.nnx.norm import Norm
from bn_research.layers.nnx.passes import Batches
from bn_research.layers.nnx.tree import Path, at, normalizations
from bn_research.norms import combination


def reestimate(
  model: nnx.Module, batches: Batches, call: Call, *, in_order: bool = True
) -> None:
  """Measures all running moments over a data set, in place.

  The moments of all batches are pooled exactly (`norms.Pooled`): the variance
  includes the differences between the means of batches. Batches may be sharded
  over a mesh.

  The moments of a layer depend on the preceding layers. With `in_order`, the
  layers are measured in the order of the calls in the forward pass, with a pass
  over the data for each layer. The preceding layers then work as at inference,
  with moments measured before, as in Algorithm 2. Without `in_order`, a single
  pass measures all layers, and the preceding layers normalize by the batch. The
  single pass is cheaper, but differs from the network at inference. The parts
  of a combination, such as a refined whitening, are always measured together.

  Training can continue after the call: the measured moments have the weight of
  the average of a trained model. A frozen normalization keeps its moments.

  With stacks of batches, the function may be called inside `jit`: each pass is
  then a `lax.scan` over each stack. Outside of `jit` a sequence is refused,
  because an array may be a batch or a stack.

  Args:
    model: A model with `Norm` or `BatchNorm` layers.
    batches: A function without arguments that returns the batches of a pass,
      such as `lambda: list_of_batches`; or, inside `jit` only, a list or a
      tuple of stacks, which are pytrees of arrays (num_batches, rows, ...).
    call: A function of (model, batch) that runs the forward pass in training
      mode.
    in_order: Whether the layers are measured separately, first to last.

  Raises:
    ValueError: If `batches` is a sequence outside of `jit`, or returns the same
      iterator twice, if no layer has running statistics to measure, if running
      statistics are not of a `norms.Normalization` or do not merge, if a layer
      met no batch, or with `in_order` if `nnx.scan` calls stacked layers one
      after another. The model is unchanged after an error.

  Source: Ioffe and Szegedy (2015), Algorithm 2.
  """
  paths = [p for p, layer in normalizations(model) if _learns(layer)]
  if not paths:
    raise ValueError(
      'no normalization in the model has running statistics that may change; '
      'give a model with a normalization such as norms.batch_norm().'
    )
  batches = passes.checked(batches)
  # A copy takes the moments of each pass, because an error in a later pass must
  # leave the model unchanged.
  copy = nnx.clone(model)
  if not in_order:
    measured = _measured(copy, set(paths), set(), batches, call)
  else:
    measured = {}
    for path in in_order_of_calls(copy, paths, passes.first(batches), call):
      found = _measured(copy, {path}, set(measured), batches, call)
      _adopt(copy, found)
      measured |= found
  _adopt(model, measured)


def measures(model: nnx.Module) -> bool:
  """Returns whether `reestimate` has something to measure in a model."""
  return any(_learns(layer) for _, layer in normalizations(model))


def _learns(layer: nnx.Module) -> bool:
  """Returns whether a layer has moments that are not frozen."""
  if not isinstance(layer, Norm):
    return True
  parts = combination.with_states(layer.normalization, layer.statistics)
  return not all(_is_fixed(part) for part, _ in parts)


def _is_fixed(part: Any) -> bool:
  return isinstance(getattr(part, 'population', None), norms.Fixed)


def _measured(model, measured, frozen, batches, call) -> dict[Path, Norm]:
  """Returns the layers, by path, with the moments of a pass over the data."""
  # The pass moves the statistics of all layers, and must not move the model's.
  probe = nnx.clone(model)
  surgery.replace(probe, _pooled, measured.__contains__)
  # The fields of the old average carry over to the pool, and must not count.
  for path in measured:
    carrying.forget(at(probe, path), _is_pool)
  if frozen:
    surgery.replace(probe, norms.freeze, frozen.__contains__)
  graphdef, state = nnx.split(probe)

  @jax.jit
  def advance(state, batch):
    # Without a copy, the forward pass would change the variables of `state`.
    merged = nnx.merge(graphdef, state, copy=True)
    call(merged, batch)
    return nnx.split(merged)[1]

  state = passes.over(batches, advance, state)
  # The options of a normalization may be arrays, which nnx cannot update.
  nnx.update(probe, nnx.filter_state(state, nnx.BatchStat))
  layers = {path: at(probe, path) for path in measured}
  for path, layer in layers.items():
    _require_moved(path, layer)
  return layers


def _require_moved(path: Path, layer: Norm) -> None:
  parts = combination.with_states(layer.normalization, carrying.state_of(layer))
  pools = [state for part, state in parts if _is_pool(part)]
  if any(isinstance(pool.steps, jax.core.Tracer) for pool in pools):
    return
  if not all(bool(jnp.all(pool.steps > 0)) for pool in pools):
    raise ValueError(
      f'the normalization at {path} met no batch with finite moments; '
      '`batches` must return batches at every call, and `call` must run the '
      'model in training mode (model.train()).'
    )


def _pooled(normalizer: Any) -> Any:
  return combination.mapped(_pooled_part, normalizer)


def _is_pool(part: Any) -> bool:
  return isinstance(part.population, norms.Pooled)


def _pooled_part(part: Any) -> Any:
  if not part.remembers or _is_fixed(part):
    return part
  if not isinstance(part, norms.Normalization):
    raise ValueError(
      f'{part} is not a norms.Normalization, and its moments cannot be pooled; '
      'use a model without this layer, or run the model in training mode.'
    )
  # The gradient policy must use the batch: a policy such as `recalled` would
  # normalize by the pool, which is incomplete during the pass.
  return dataclasses.replace(
    part,
    map=part.map.remembering_moments(),
    population=norms.Pooled(),
    gradient=norms.through,
  )


def _adopt(model: nnx.Module, measured: dict[Path, Norm]) -> None:
  """Writes the measured moments into each layer."""
  for path, found in measured.items():
    layer = at(model, path)
    if not isinstance(layer, Norm):
      # A BatchNorm has mean and variance, and no state with counts.
      pool = carrying.state_of(found)
      for variable, new in ((layer.mean, pool.mean), (layer.var, pool.var)):
        variable.set_value(_if_moved(pool, new, variable[...]))
      continue
    pools = iter(
      pool
      for _, pool in combination.with_states(
        found.normalization, carrying.state_of(found)
      )
    )

    def adopted(part, state, pools=pools):
      pool = next(pools)
      if _is_fixed(part):
        return state

      def adopt(state, pool):
        moments = norms.Moments(pool.weight, pool.mean, pool.var)
        moments = moments.with_variance(pool.var)
        new = part.population.adopt(state, moments, part.map, pool.steps)
        return jax.tree.map(functools.partial(_if_moved, pool), new, state)

      return calls.over_models(adopt, pool.steps.ndim)(state, pool)

    state = carrying.state_of(layer)
    carrying.set_state(
      layer, combination.mapped_with_states(adopted, layer.normalization, state)
    )


def _if_moved(pool: Any, new: jax.Array, old: jax.Array) -> jax.Array:
  """Returns the old moments of a layer that met no batch inside `jit`."""
  return jnp.where(pool.steps > 0, new, old)
