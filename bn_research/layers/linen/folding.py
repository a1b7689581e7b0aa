"""Folds the normalizations of a linen model into the preceding layers."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import traverse_util

from bn_research import norms
from bn_research.layers.linen.carrying import (
  Path,
  Variables,
  in_the_box_of,
)
from bn_research.layers.paths import checked_pairs
from bn_research.norms import checks


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
      show the class of a layer: a kernel of two axes counts as a `Dense`, so
      leave `Einsum` and `DenseGeneral` out. The variables do not show the mask
      of a masked `Conv` either: multiply the kernel by the mask first, and
      leave the mask out afterwards.
    normalization: The normalization of the layers.
    feature_group_count: The number of groups of the convolutions, which the
      variables do not show. Only whitening needs the number. Convolutions with
      different numbers need separate calls. A number, even 1, says that the
      layers are `Conv`, unless `transpose_kernel` is given too.
    transpose_kernel: The option of the convolutions: whether the outputs are
      the second to last axis of the kernel. Give the option for a
      `ConvTranspose` with as many inputs as outputs. With None the sizes
      decide, or `feature_group_count`; without both, the kernel of a
      convolution with as many inputs as outputs raises an error.

  Returns:
    Variables of the model with `norms.none()` and no bias in place of each
    normalization, and with a bias in each preceding layer.

  Raises:
    ValueError: If a path is no tuple or does not exist, if the normalization
      has no population, and therefore is not affine, if the normalization mixes
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
  pairs = checked_pairs(pairs)
  flat = traverse_util.flatten_dict(dict(variables), keep_empty_nodes=True)
  for norm_path, layer_path in pairs.items():
    _fold_pair(
      flat,
      norm_path,
      layer_path,
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
    is_transposed = _is_transposed(kernel, outputs, groups, layer_path)
  size = kernel.shape[-2 if is_transposed else -1]
  if (size,) != outputs:
    raise ValueError(
      f'the kernel at {layer_path} has shape {kernel.shape}, and the '
      f'normalization at {norm_path} has features of shape {outputs}; give '
      'the layer before the normalization, and variables of a single model.'
    )
  kernel, bias = norms.fold(
    kernel,
    nn.meta.unbox(flat.get(bias_path)),
    normalization,
    _state(normalization, statistics),
    affine.get('scale'),
    affine.get('bias'),
    groups,
    transpose_kernel=is_transposed,
  )
  flat[kernel_path] = in_the_box_of(flat[kernel_path], kernel)
  flat[bias_path] = in_the_box_of(flat.get(bias_path), bias)


def _is_transposed(
  kernel: jax.Array, outputs, groups: int | None, path: Path
) -> bool:
  """Returns whether the outputs are the second to last axis of a kernel.

  Raises:
    ValueError: For a convolution with as many inputs as outputs, and an
      unknown number of groups.
  """
  if kernel.ndim == 2 or (groups or 1) > 1:
    # A dense layer has its outputs last, and no transposed convolution of linen
    # has several groups.
    return False
  is_last, is_before = (
    kernel.shape[-1:] == outputs,
    kernel.shape[-2:-1] == outputs,
  )
  if is_last and is_before and groups is None:
    raise ValueError(
      f'the kernel of shape {kernel.shape} at {path} has as many inputs as '
      'outputs, and no variable tells which axis has the outputs; give '
      'feature_group_count, 1 by default, for a Conv, or transpose_kernel for '
      'a ConvTranspose.'
    )
  return is_before and not is_last


def _state(normalization: norms.Normalization, statistics: dict[str, Any]):
  """Returns the state that the variables of a layer hold."""
  # The variables of Flax's BatchNorm have no counts: the initial counts stay.
  mean = statistics['mean']
  initial = normalization.init(mean.shape, mean.dtype)
  return checks.restored(initial._asdict() | statistics, initial)


def _pop(flat: dict[Path, Any], prefix: Path) -> dict[str, Any]:
  """Removes the arrays below a path, and returns them as nested dicts."""
  below = [path for path in flat if path[: len(prefix)] == prefix]
  return traverse_util.unflatten_dict(
    {path[len(prefix) :]: nn.meta.unbox(flat.pop(path)) for path in below}
  )
