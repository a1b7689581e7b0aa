"""Changing the normalizations of a linen model: its variable trees.

A linen model is a recipe. It is changed by making it with another norm, such as
the result of `norms.freeze` or `norms.sync`, or of another factory. The
functions here take the variables along.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from bn_research import norms
from bn_research.layers import calls

Path = tuple[str, ...]
Variables = Mapping[str, Any]

# What a layer counts, which belongs to the mean and variance beside it.
_COUNTS = ('steps', 'weight')


def carry(old: Variables, new: Variables) -> Variables:
  """Returns `new` with every array of `old` that has its path and shape.

  The running statistics of a layer are carried all together or not at all, and
  the two layers must give them the same meaning. Flax's `BatchNorm` counts no
  updates; its statistics weigh as much as the average of a trained model. How
  an array is partitioned is told by `new`, or by `old` if `new` does not tell.

  Args:
    old: Variables of the model as it was.
    new: Variables of the model as it is to be, from `init`.

  Returns:
    Variables of the tree of `new`.
  """
  known = traverse_util.flatten_dict(dict(old))
  fresh = traverse_util.flatten_dict(dict(new))
  shapes = lambda leaf: jax.tree.map(jnp.shape, nn.meta.unbox(leaf))
  fits = {
    path: path in known and shapes(known[path]) == shapes(leaf)
    for path, leaf in fresh.items()
  }
  carried = {
    path: _carried(path, leaf, known, fits) for path, leaf in fresh.items()
  }
  return traverse_util.unflatten_dict(carried)


def _carried(path: Path, leaf: Any, known: dict[Path, Any], fits) -> Any:
  """Returns what becomes of one array of the new variables."""
  mean, var = ((*path[:-1], name) for name in ('mean', 'var'))
  is_statistic = path[0] == 'batch_stats'
  if is_statistic and not (fits.get(mean, True) and fits.get(var, True)):
    return leaf
  if fits[path]:
    return _in_the_box_of(leaf, known[path])
  if is_statistic and path[-1] in _COUNTS and mean in known:
    arrays = (nn.meta.unbox(known[p]) for p in (mean, var))
    weight = jnp.broadcast_to(calls.weight_of(*arrays), jnp.shape(leaf))
    return weight.astype(leaf.dtype)
  return leaf


def _in_the_box_of(new: Any, old: Any) -> Any:
  """Returns the arrays of `old`, partitioned as `new` if `new` tells how."""
  if not isinstance(new, nn.meta.AxisMetadata):
    return old
  return new.replace_boxed(nn.meta.unbox(old))


def fold(
  variables: Variables,
  pairs: Mapping[Path, Path],
  normalization: norms.Normalization,
  *,
  feature_group_count: int | None = None,
  transpose_kernel: bool | None = None,
) -> Variables:
  """Folds normalizations into the layers before them, for inference.

  Args:
    variables: Of a model with this normalization, `Norm` or `BatchNorm`.
    pairs: From the path of each normalization to the path of the `Dense`,
      `Conv` or `ConvTranspose` whose output it normalizes. No variable tells
      the mask of a masked `Conv`: mask the kernel first, and leave the mask
      out afterwards.
    normalization: What the layers do.
    feature_group_count: Of the convolutions. No variable tells it; whitening
      asks for it. Pairs of different counts take a call each.
    transpose_kernel: Of the convolutions: whether the outputs are the last axis
      but one of the kernel. None to tell by the sizes, which is refused for as
      many inputs as outputs.

  Returns:
    Variables of the model with `norms.none()` and no bias in its place, and a
    bias in the layers before.

  Raises:
    ValueError: If there is no such normalization or layer, if a normalization
      remembers nothing, and so is not affine, if it mixes outputs of a
      convolution that see different inputs, or if the variables do not tell
      what the outputs of a kernel are.
  """
  if not isinstance(normalization, norms.Normalization):
    raise ValueError(
      f'{normalization} is not a norms.Normalization; only one of those is '
      'folded: give its parts as layers of their own.'
    )
  if normalization.population is None:
    raise ValueError(
      f'{normalization} depends on the example at inference too, so it cannot '
      'be folded into a kernel.'
    )
  if len(set(pairs.values())) < len(pairs):
    raise ValueError(
      f'pairs={dict(pairs)} fold two normalizations into one layer; give each '
      'normalization a layer of its own.'
    )
  flat = dict(traverse_util.flatten_dict(dict(variables)))
  for norm_path, layer_path in pairs.items():
    _fold_pair(
      flat,
      tuple(norm_path),
      tuple(layer_path),
      normalization,
      feature_group_count,
      transpose_kernel,
    )
  return traverse_util.unflatten_dict(flat)


def _fold_pair(
  flat, norm_path, layer_path, normalization, groups, is_transposed
) -> None:
  kernel_path = ('params', *layer_path, 'kernel')
  mean_path = ('batch_stats', *norm_path, 'mean')
  if kernel_path not in flat or mean_path not in flat:
    raise ValueError(
      f'no normalization at {norm_path} after a kernel at {layer_path}; the '
      f'variables are: {["/".join(path) for path in flat]}.'
    )
  statistics = _pop(flat, ('batch_stats', *norm_path))
  affine = _pop(flat, ('params', *norm_path))
  bias_path = ('params', *layer_path, 'bias')
  kernel = nn.meta.unbox(flat[kernel_path])
  outputs = statistics['mean'].shape
  if is_transposed is None:
    is_transposed = _is_transposed(kernel, outputs, layer_path)
  turn = partial(jnp.swapaxes, axis1=-1, axis2=-2) if is_transposed else _same
  if turn(kernel).shape[-1:] != outputs:
    raise ValueError(
      f'the kernel at {layer_path} has shape {kernel.shape}, and the '
      f'normalization at {norm_path} has features of shape {outputs}; give '
      'the layer whose output is normalized, of one model.'
    )
  kernel, bias = norms.fold(
    turn(kernel),
    nn.meta.unbox(flat.get(bias_path)),
    normalization,
    _state(normalization, statistics),
    affine.get('scale'),
    affine.get('bias'),
    groups,
  )
  flat[kernel_path] = _in_the_box_of(flat[kernel_path], turn(kernel))
  flat[bias_path] = _in_the_box_of(flat.get(bias_path), bias)


def _is_transposed(kernel: jax.Array, outputs, path: Path) -> bool:
  """Whether the outputs of a kernel are its last axis but one.

  Raises:
    ValueError: For a convolution with as many inputs as outputs.
  """
  if kernel.ndim == 2:
    return False  # A dense layer has its outputs last.
  is_last, is_before = (
    kernel.shape[-1:] == outputs,
    kernel.shape[-2:-1] == outputs,
  )
  if is_last and is_before:
    raise ValueError(
      f'the kernel at {path} has shape {kernel.shape}, with as many inputs as '
      'outputs; give transpose_kernel, False for a Conv, and for a '
      'ConvTranspose its own attribute.'
    )
  return is_before


def _state(normalization: norms.Normalization, statistics: dict[str, Any]):
  """Returns the state that the variables of a layer hold."""
  mean = statistics['mean']
  initial = normalization.init(mean.shape, mean.dtype)
  held = {n: statistics[n] for n in initial._fields if n in statistics}
  return initial._replace(**held)


def _same(kernel: jax.Array) -> jax.Array:
  return kernel


def _pop(flat: dict[Path, Any], prefix: Path) -> dict[str, Any]:
  """Takes out all arrays right below a path, and returns them by name."""
  names = [path for path in flat if path[:-1] == prefix]
  return {path[-1]: nn.meta.unbox(flat.pop(path)) for path in names}
