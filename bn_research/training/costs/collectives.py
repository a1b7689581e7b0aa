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
  reduced = _gradient(params)
  if gathers:
    reduced += sum(
      _cotangents(layer) for _, layer in tree.normalizations(model)
    )
  return Collectives(2 * len(gathers) + 1, sum(gathers), reduced)


def least(model: nnx.Module) -> Collectives:
  """Returns the least that a step of training has to move between devices.

    number  = 2 · normalizations over the batch + 1
    reduced = bytes of (gradient, loss), plus for each normalization the moments
              forward, and backward the cotangents of `of_step`

  The moments of a layer depend on the moments of the layers before, and the
  cotangents of a layer on the cotangents of the layers after: these collectives
  cannot travel together. Nothing is gathered: a sum of moments over the devices
  has the size of the moments of one device. A covariance is a whole matrix, and
  counts of examples are known to all devices.

  Args:
    model: The model, abstract or not.
  """
  layers = [layer for _, layer in tree.normalizations(model) if _moments(layer)]
  moments = sum(map(_moments, layers)) + sum(map(_cotangents, layers))
  gradient = _gradient(nnx.state(model, nnx.Param))
  return Collectives(2 * len(layers) + 1, 0, moments + gradient)


def _gradient(params: Any) -> int:
  """Returns the bytes of the gradient and of the loss."""
  return _LOSS + sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(params)
  )


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


def _moments(layer: Any) -> int:
  """Returns the bytes of the moments of the batch, on a single device."""
  if isinstance(layer, nnx.BatchNorm):
    return 2 * layer.num_features * _itemsize(layer)
  return sum(
    sum(_numbers(part, layer.num_features)) for part in _parts(layer)
  ) * _itemsize(layer)


def _cotangents(layer: Any) -> int:
  """Returns the bytes of sums that are no gradient of a bias or a scale."""
  if isinstance(layer, nnx.BatchNorm):
    return 0
  numbers = 0
  for part in _parts(layer):
    means, spreads = _numbers(part, layer.num_features)
    # The gradients of a bias and of a scale are such sums already.
    is_usual = _is_of_axes(part) and not part.map.joint
    numbers += means * (not is_usual or layer.bias is None)
    numbers += spreads * (not is_usual or layer.scale is None)
  return numbers * _itemsize(layer)


def _parts(layer: Any) -> tuple[Any, ...]:
  return getattr(layer.normalization, 'parts', (layer.normalization,))


def _itemsize(layer: Any) -> int:
  return jnp.dtype(layer.param_dtype).itemsize


def _is_of_axes(normalization: Any) -> bool:
  return isinstance(normalization, norms.Normalization)


def _numbers(normalization: Any, size: int) -> tuple[int, int]:
  """Returns the numbers in the means of the batch, and in its spreads."""
  if not _is_of_axes(normalization):
    # A method without a map, such as EvoNorm, has a variance of the batch if
    # the method remembers a variance.
    return 0, size if normalization.remembers else 0
  scope, map_ = normalization.scope, normalization.map
  if not scope.shares or not map_.needs_moments:
    return 0, 0
  if not map_.joint:
    return size * map_.centre, size * map_.scales
  initial = jax.eval_shape(lambda: map_.initial((size,), jnp.float32))
  return size * map_.centre, math.prod(initial.comoment.shape)
