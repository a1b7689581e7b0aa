"""Transfers variables to a linen model with a different normalization.

To change a linen model, make the model again with a different normalization,
such as the result of `norms.freeze`, of `norms.sync` or of a factory. The
functions in this module then convert the variables.
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

# Counts of a layer, which belong to the mean and variance of the same layer.
_COUNTS = ('steps', 'weight')
# Statistics that a layer may start without: they count, or wait for a batch.
_LATER = {'steps', 'skipped', 'weight', 'pending', 'seen'}


def carry(old: Variables, new: Variables) -> Variables:
  """Copies the arrays of `old` into `new` if path and shape agree.

  The running statistics of a layer are copied all together or not at all. The
  caller makes sure that both layers give the statistics the same meaning. The
  statistics of Flax's `BatchNorm`, which counts no updates, get the weight of
  the average of a trained model. The partitioning of an array comes from `new`,
  or from `old` if `new` has no partitioning.

  Args:
    old: Variables of the model before the change.
    new: Variables of the changed model, from `init`.

  Returns:
    Variables with the tree of `new`.
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
  """Returns the array at a path of the new variables."""
  mean, var = ((*path[:-1], name) for name in ('mean', 'var'))
  is_statistic = path[0] == 'batch_stats'
  # A copied mean with a fresh variance would be no statistics of any model. The
  # default is True, because a combination has no array with the name `mean`.
  if is_statistic and not (fits.get(mean, True) and fits.get(var, True)):
    return leaf
  if is_statistic and mean in known and _lacks_some(path[:-1], known, fits):
    return leaf
  if fits[path]:
    return _in_the_box_of(leaf, known[path])
  if is_statistic and path[-1] in _COUNTS and mean in known:
    # Mean and variance come from a layer without counts. With counts of 0 a
    # debiased average would forget the copied statistics.
    arrays = (nn.meta.unbox(known[p]) for p in (mean, var))
    weight = jnp.broadcast_to(calls.weight_of(*arrays), jnp.shape(leaf))
    return weight.astype(leaf.dtype)
  return leaf


def _lacks_some(layer: Path, known: dict[Path, Any], fits) -> bool:
  """Returns whether a layer normalizes with what the old layer has not.

  A layer that renews its matrices at an interval would normalize with initial
  matrices until the next renewal, though its mean and variance are trained.
  """
  needed = (p for p in fits if p[:-1] == layer and p[-1] not in _LATER)
  return any(path not in known for path in needed)


def _in_the_box_of(new: Any, old: Any) -> Any:
  """Returns the arrays of `old`, with the partitioning of `new` if any."""
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
  """Folds normalizations into the preceding layers, for inference.

    (x K + k) D + e = x (K D) + (k D + e)

  At inference a normalization with a population is the affine map y = x D + e.

  Args:
    variables: Variables of a model whose `Norm` or `BatchNorm` layers have the
      given normalization.
    pairs: From the path of each normalization to the path of the `Dense`,
      `Conv` or `ConvTranspose` before the normalization. The variables do not
      show the mask of a masked `Conv`: multiply the kernel by the mask first,
      and leave the mask out afterwards.
    normalization: The normalization of the layers.
    feature_group_count: The number of groups of the convolutions, which the
      variables do not show. Only whitening needs the number. Convolutions with
      different numbers need separate calls.
    transpose_kernel: The option of the convolutions: whether the outputs are
      the second to last axis of the kernel. With None the sizes decide, and a
      kernel with as many inputs as outputs raises an error.

  Returns:
    Variables of the model with `norms.none()` and no bias in place of each
    normalization, and with a bias in each preceding layer.

  Raises:
    ValueError: If a path does not exist, if the normalization has no
      population, and therefore is not affine, if the normalization mixes
      outputs of a convolution with different inputs, or if the variables do not
      show the output axis of a kernel.
  """
  if not isinstance(normalization, norms.Normalization):
    raise ValueError(
      f'{normalization} is not a norms.Normalization and cannot be folded as a '
      'whole; give its parts as layers of their own.'
    )
  if normalization.population is None:
    raise ValueError(
      f'{normalization} depends on the example at inference too and cannot be '
      'folded into a kernel; give a normalization with a population.'
    )
  if len(set(pairs.values())) < len(pairs):
    raise ValueError(
      f'pairs={dict(pairs)} fold two normalizations into the same layer; give '
      'each normalization a different layer.'
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
      f'no normalization at {norm_path}, or no kernel at {layer_path}; choose '
      f'paths of the variables: {["/".join(path) for path in flat]}.'
    )
  statistics = _pop(flat, ('batch_stats', *norm_path))
  affine = _pop(flat, ('params', *norm_path))
  bias_path = ('params', *layer_path, 'bias')
  kernel = nn.meta.unbox(flat[kernel_path])
  outputs = statistics['mean'].shape
  if is_transposed is None:
    # No transposed convolution of linen has groups.
    is_transposed = groups is None and _is_transposed(
      kernel, outputs, layer_path
    )
  # `norms.fold` expects the outputs on the last axis.
  turn = partial(jnp.swapaxes, axis1=-1, axis2=-2) if is_transposed else _same
  if turn(kernel).shape[-1:] != outputs:
    raise ValueError(
      f'the kernel at {layer_path} has shape {kernel.shape}, and the '
      f'normalization at {norm_path} has features of shape {outputs}; give '
      'the layer before the normalization, and variables of a single model.'
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
  """Returns whether the outputs are the second to last axis of a kernel.

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
      f'the kernel of shape {kernel.shape} at {path} has as many inputs as '
      'outputs, and no variable tells which axis has the outputs; give '
      'feature_group_count, 1 by default, for a Conv, or transpose_kernel for '
      'a ConvTranspose.'
    )
  return is_before


def _state(normalization: norms.Normalization, statistics: dict[str, Any]):
  """Returns the state that the variables of a layer hold."""
  # The variables of Flax's BatchNorm have no counts: the initial counts stay.
  mean = statistics['mean']
  initial = normalization.init(mean.shape, mean.dtype)
  held = {n: statistics[n] for n in initial._fields if n in statistics}
  return initial._replace(**held)


def _same(kernel: jax.Array) -> jax.Array:
  return kernel


def _pop(flat: dict[Path, Any], prefix: Path) -> dict[str, Any]:
  """Removes the arrays directly below a path, and returns them by name."""
  names = [path for path in flat if path[:-1] == prefix]
  return {path[-1]: nn.meta.unbox(flat.pop(path)) for path in names}
