"""Counts the collectives of a training step, without devices."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core
from jax.interpreters import partial_eval
from jax.sharding import AbstractMesh, AxisType

from bn_research import norms
from bn_research.layers.nnx import tree

_LOSS = 4  # bytes


class Collectives(NamedTuple):
  """The collectives of a training step.

  Attributes:
    number: The number of collectives.
    gathered: Bytes of the results of all gathers of statistics.
    reduced: Bytes of the results of all sums of gradients.
  """

  number: int
  gathered: int
  reduced: int

  def times(self, count: int) -> 'Collectives':
    """Returns the collectives of `count` micro-batches, one after another.

    Args:
      count: The number of micro-batches.
    """
    return Collectives(*(count * number for number in self))


def mesh_of(num_devices: int) -> AbstractMesh:
  """Returns the mesh of a run, for a trace without devices."""
  return AbstractMesh((num_devices,), ('data',), axis_types=(AxisType.Auto,))


def of_step(
  loss: Callable[..., Any], model: nnx.Module, params: Any, *args: Any
) -> Collectives:
  """Returns the collectives of a step of training under jit over a mesh.

    gathered = Σ over normalizations of n · bytes of (count, mean, comoment)
    reduced  = bytes of (gradient, loss), plus for each normalization the
               cotangents of (mean, spread) that are no gradient of its bias or
               scale

  A normalization over the batch has one collective forward and one backward;
  all gradients of further parameters share the last collective. The cotangents
  of the mean and of the deviation are the gradients of bias and scale, and
  travel only once. A normalization of another library, and parts of a user that
  communicate by themselves, do not count. XLA may divide a collective in two.

  Args:
    loss: A function from the parameters and `args` to a loss (), or to a loss
      and the further state of the model.
    model: The model, to find the normalizations; abstract or not.
    params: The parameters, abstract or not.
    *args: Abstract or concrete arguments of the loss.

  Returns:
    The collectives, for the number of devices of the mesh in context, as by
    `jax.sharding.use_abstract_mesh(mesh_of(n))`.
  """
  if jax.sharding.get_abstract_mesh().size == 1:
    return Collectives(0, 0, 0)
  gathers = list(_gathers(_used(jax.make_jaxpr(loss)(params, *args))))
  reduced = sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(params)
  )
  if gathers:
    reduced += sum(
      _cotangents(layer) for _, layer in tree.normalizations(model)
    )
  return Collectives(2 * len(gathers) + 1, sum(gathers), reduced + _LOSS)


def _used(jaxpr: Any) -> Any:
  """Returns a program without the computations that no result uses."""
  used, _ = partial_eval.dce_jaxpr(
    jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars)
  )
  return used


def _gathers(jaxpr: Any) -> Iterator[int]:
  """Yields the bytes of each array that a program brings to all devices."""
  if isinstance(jaxpr, core.ClosedJaxpr):
    jaxpr = jaxpr.jaxpr
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'sharding_constraint':
      if equation.params['sharding'].is_fully_replicated:
        aval = equation.outvars[0].aval
        yield math.prod(aval.shape) * aval.dtype.itemsize
      continue
    turns = equation.params.get('length', 1)
    for value in equation.params.values():
      items = value if isinstance(value, tuple | list) else (value,)
      for item in items:
        if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
          yield from list(_gathers(item)) * turns


def _cotangents(layer: Any) -> int:
  """Returns the bytes of sums that are no gradient of a bias or a scale."""
  if isinstance(layer, nnx.BatchNorm):
    return 0
  parts = getattr(layer.normalization, 'parts', (layer.normalization,))
  numbers = sum(_numbers(part, layer) for part in parts)
  return numbers * jnp.dtype(layer.param_dtype).itemsize


def _numbers(normalization: Any, layer: Any) -> int:
  size = layer.num_features
  if not isinstance(normalization, norms.Normalization):
    # A method without a map, such as EvoNorm, has a variance of the batch if
    # the method remembers a variance.
    return size if normalization.remembers else 0
  scope, map_ = normalization.scope, normalization.map
  if not scope.shares or not map_.needs_moments:
    return 0
  initial = jax.eval_shape(lambda: map_.initial((size,), jnp.float32))
  if map_.joint:
    return math.prod(initial.comoment.shape) + size * map_.centre
  needs_mean = map_.centre and layer.bias is None
  needs_spread = map_.scales and layer.scale is None
  return size * (needs_mean + needs_spread)
