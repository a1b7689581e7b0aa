"""Folds the normalizations of an nnx model into the preceding layers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from bn_research import norms
from bn_research.layers.nnx.carrying import as_norm, stacked_along, state_of
from bn_research.layers.nnx.norm import Norm
from bn_research.layers.nnx.promotion import value
from bn_research.layers.nnx.tree import (
  Path,
  errors_at,
  modules,
  normalizations,
  places_of,
  put_all,
)
from bn_research.layers.paths import checked_pairs, listed

# Layers with the outputs on the last axis of the kernel, or on the second to
# last for a transposed kernel. These layers only add a bias to the product.
_FOLDABLE = (nnx.Linear, nnx.Conv, nnx.ConvTranspose)


def fold(model: nnx.Module, pairs: Mapping[Path, Path]) -> None:
  """Folds normalizations into the preceding layers, in place, for inference.

    (x K + k) D + e = x (K D) + (k D + e)

  At inference a normalization with a population is the affine map y = x D + e.
  Either all pairs are folded, or the model is unchanged. The layers get new
  variables: a further layer with the same kernel or bias keeps the old values.

  Args:
    model: The model. Each folded normalization becomes `norms.none()`.
    pairs: From the path of each normalization to the path of the `nnx.Linear`,
      `nnx.Conv` or `nnx.ConvTranspose` before the normalization.

  Raises:
    ValueError: If a path is no tuple, does not exist, or leads to a layer of a
      different kind, if a normalization has no population, and therefore is not
      affine, if a normalization mixes outputs with different inputs, or if a
      layer has a different width, is used in several places, or is stacked. The
      model is then unchanged.
  """
  pairs = checked_pairs(pairs)
  known = modules(model)
  # All kernels are computed before the first write, because an error must leave
  # the model unchanged.
  folded = [_folded(model, known, *pair) for pair in pairs.items()]
  put_all(model, [new for new, _ in folded])
  for _, write in folded:
    write()


def _folded(
  model: nnx.Module,
  known: Mapping[Path, nnx.Module],
  norm_path: Path,
  layer_path: Path,
) -> tuple[tuple[tuple[Path, ...], nnx.Module], Callable[[], None]]:
  """Folds a pair, and does not change the model.

  Returns:
    The places and the replacement of the normalization, and a function that
    writes the new kernel and bias into the layer.
  """
  norm = _norm_at(model, known, norm_path)
  layer: Any = _layer_at(known, layer_path)
  _require_foldable(model, norm, norm_path, layer, layer_path)
  normalization: Any = norm.normalization
  kernel, bias = norms.fold(
    _masked_kernel(layer),
    value(layer.bias),
    normalization,
    state_of(norm),
    value(norm.scale),
    value(norm.bias),
    getattr(layer, 'feature_group_count', 1),
    transpose_kernel=getattr(layer, 'transpose_kernel', False),
  )
  none = Norm(
    norms.none(),
    norm.num_features,
    use_bias=False,
    dtype=norm.dtype,
    rngs=nnx.Rngs(0),
  )

  def write() -> None:
    # New variables, because a further layer may use the old variables.
    layer.kernel = layer.kernel.replace(kernel)
    if layer.bias is None:
      layer.bias, layer.use_bias = nnx.data(nnx.Param(bias)), True
    else:
      layer.bias = layer.bias.replace(bias)
    if getattr(layer, 'mask', None) is not None:
      # The folded kernel contains the mask. A whitening adds the kernels of
      # neighbouring outputs, at masked weights too, and a second mask would
      # remove these weights.
      layer.mask = None

  return ((norm_path,), none), write


def _norm_at(model, known, path: Path) -> Norm:
  layer = known.get(path)
  if isinstance(layer, Norm | nnx.BatchNorm):
    with errors_at(path):
      return as_norm(layer)
  found = 'no layer' if layer is None else f'a {type(layer).__name__}'
  choices = listed(path for path, _ in normalizations(model))
  raise ValueError(
    f'the model has {found} at {path}; give pairs from the path of a Norm or a '
    f'BatchNorm, among {choices}, to the path of the layer before.'
  )


def _layer_at(known, path: Path) -> nnx.Module:
  if path in known:
    return known[path]
  choices = listed(p for p, layer in known.items() if type(layer) in _FOLDABLE)
  raise ValueError(
    f'the model has no layer at {path}; give pairs from the path of a '
    f'normalization to the path of the layer before, among {choices}.'
  )


def _masked_kernel(layer: Any) -> jax.Array:
  mask = getattr(layer, 'mask', None)
  kernel = layer.kernel[...]
  return kernel if mask is None else kernel * mask


def _require_foldable(model, norm, norm_path, layer, layer_path) -> None:
  if not norm.normalization.remembers:
    raise ValueError(
      f'{norm_path}: {norm.normalization} depends on the example at inference '
      'too and cannot be folded into a kernel; leave the pair out.'
    )
  # A subclass may change the output, hence the exact class is compared.
  if type(layer) not in _FOLDABLE:
    names = ', '.join(f'nnx.{kind.__name__}' for kind in _FOLDABLE)
    raise ValueError(
      f'{layer_path} is a {type(layer).__name__}, and the last axis of its '
      f'kernel need not be the outputs; only {names} can be folded into.'
    )
  for path in (norm_path, layer_path):
    if len(places_of(model, path)) > 1:
      raise ValueError(
        f'{path} is used in several places, {places_of(model, path)}; fold '
        'only layers that the model uses in a single place.'
      )
  _require_one_model(norm, norm_path, layer, layer_path)
  kernel = layer.kernel[...]
  is_transposed = getattr(layer, 'transpose_kernel', False)
  outputs = kernel.shape[-2 if is_transposed else -1]
  if outputs != norm.num_features:
    raise ValueError(
      f'{layer_path} has {outputs} outputs, and the normalization at '
      f'{norm_path} has {norm.num_features} features; give the layer directly '
      'before the normalization.'
    )


def _require_one_model(norm, norm_path, layer, layer_path) -> None:
  sizes = getattr(layer, 'kernel_size', ())
  ndim = 2 + (1 if isinstance(sizes, int) else len(sizes))
  if stacked_along(norm):
    raise ValueError(
      f'{norm_path} has the arrays of several models; fold each model before '
      'models are stacked.'
    )
  if layer.kernel[...].ndim != ndim:
    raise ValueError(
      f'{layer_path} has a kernel of shape {layer.kernel[...].shape}, and the '
      f'kernel of a single model has {ndim} axes; fold each model before '
      'models are stacked.'
    )
