"""Records moments of the inputs of layers during a forward pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from bn_research import norms
from bn_research.norms.inputs import layer_inputs as inputs
from bn_research.norms.statistics.collectives import AxisNames

Note = Callable[[norms.Moments], None]

PLAIN_LAYERS = (nnx.Linear, nnx.Conv)
"""Layers whose kernel multiplies the raw input, or patches of the raw input."""


def record_inputs(
  model: nnx.Module,
  of: tuple[type, ...] | None = None,
  axis_name: AxisNames = None,
) -> dict[str, norms.Moments]:
  """Makes dense and convolution layers record the moments of the inputs.

  If a layer is called several times, the moments of all inputs are joined. A
  model with an attribute `remat` records without rematerialization.

  Args:
    model: The model, which is changed in place and records in all later calls.
      Give a copy if the model is used again.
    of: The classes of the recording layers; None for `nnx.Linear`, `nnx.Conv`
      and all layers with an attribute `observe`, for example `WhitenedDense`.
    axis_name: Named mesh axes to pool over in `shard_map`, `pmap` and `vmap`;
      None to pool over no named axis.

  Returns:
    An empty dictionary, which calls of the model fill. The keys are the paths
    of layers in the model, for example `dense/0`. The values are the moments:
    count and mean (d,), and co-moment (1, d, d), for d inputs of a kernel.
  """
  found: dict[str, norms.Moments] = {}
  modules: Any = nnx.iter_modules(model)
  for path, layer in modules:
    # The moments could not leave a block that the backward pass computes again.
    if getattr(layer, 'remat', False):
      layer.remat = False
    if _can_note(layer) and (of is None or isinstance(layer, of)):
      note = _note_in(found, '/'.join(map(str, path)))
      _listen(layer, note, axis_name)
  return found


def merged(noted: dict[str, norms.Moments]) -> dict[str, norms.Moments]:
  """Returns the moments of a mini-batch from the moments of micro-batches.

  Args:
    noted: The result of `record_inputs`, with the micro-batches along a new
      first axis of each array.
  """

  def joined(moments: norms.Moments) -> norms.Moments:
    count = len(moments.mean)
    each = [jax.tree.map(lambda x, i=i: x[i], moments) for i in range(count)]
    return functools.reduce(norms.joined, each)

  return {name: joined(moments) for name, moments in noted.items()}


def _can_note(layer: nnx.Module) -> bool:
  return isinstance(layer, PLAIN_LAYERS) or hasattr(layer, 'observe')


def _note_in(found: dict[str, norms.Moments], name: str) -> Note:
  def note(moments: norms.Moments) -> None:
    if name in found:
      moments = norms.joined(found[name], moments)
    found[name] = moments

  return note


def _listen(layer: Any, note: Note, axis_name: AxisNames) -> None:
  """Makes a layer call `note` with the moments of each input."""
  # The layers of Flax have no hook for inputs, but the function that multiplies
  # by the kernel is an attribute. A wrapper sees the padded input.
  if hasattr(layer, 'observe'):
    layer.observe = _observing_too(layer.observe, note, axis_name)
  elif isinstance(layer, nnx.Linear):
    layer.dot_general = _noting_features(layer.dot_general, note, axis_name)
  elif isinstance(layer, nnx.Conv):
    layer.conv_general_dilated = _noting_patches(
      layer.conv_general_dilated, note, axis_name
    )


def _observing_too(observe: Callable | None, note: Note, axis_name: AxisNames):
  def observing(x: jax.Array) -> None:
    note(inputs.input_moments(x, norms.Batch(axis_name=axis_name)))
    if observe is not None:
      observe(x)

  return observing


def _noting_features(dot_general: Callable[..., jax.Array], note, axis_name):
  def noting(x, kernel, *args, **options):
    note(inputs.input_moments(x, norms.Batch(axis_name=axis_name)))
    return dot_general(x, kernel, *args, **options)

  return noting


def _noting_patches(
  conv_general_dilated: Callable[..., jax.Array], note, axis_name
):
  def noting(x, kernel, strides, padding, **options):
    patches = norms.Patches(
      kernel.shape[:-2],
      strides,
      padding,
      options['lhs_dilation'],
      options['rhs_dilation'],
      axis_name,
    )
    note(inputs.input_moments(x, patches))
    return conv_general_dilated(x, kernel, strides, padding, **options)

  return noting
