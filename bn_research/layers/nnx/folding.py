"""Folds the normalizations of an nnx model into the preceding layers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from bn_research import norms
from bn_research.layers.nnx.carrying import as_norm, state_of
from bn_research.layers.nnx.norm import Norm
from bn_research.layers.nnx.promotion import value
from bn_research.layers.nnx.tree import Path, at, places_of, put_all

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
    ValueError: If a normalization has no population, and therefore is not
      affine, if a normalization mixes outputs with different inputs, or if a
      layer has a different class, is used in several places, or is stacked. The
      model is then unchanged.
  """
  if len(set(pairs.values())) < len(pairs):
    raise ValueError(
      f'pairs={dict(pairs)} fold two normalizations into the same layer; give '
      'each normalization a different layer.'
    )
  # All kernels are computed before the first write, because an error must leave
  # the model unchanged.
  folded = [_folded(model, *pair) for pair in pairs.items()]
  put_all(model, [new for new, _ in folded])
  for _, write in folded:
    write()


def _folded(
  model: nnx.Module, norm_path: Path, layer_path: Path
) -> tuple[tuple[tuple[Path, ...], nnx.Module], Callable[[], None]]:
  """Folds a pair, and does not change the model.

  Returns:
    The places and the replacement of the normalization, and a function that
    writes the new kernel and bias into the layer.
  """
  norm, layer = as_norm(at(model, norm_path)), at(model, layer_path)
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
  sizes = getattr(layer, 'kernel_size', ())
  ndim = 2 + (1 if isinstance(sizes, int) else len(sizes))
  if layer.kernel[...].ndim != ndim:
    raise ValueError(
      f'{layer_path} has a kernel of shape {layer.kernel[...].shape}, and the '
      f'kernel of a single model has {ndim} axes; fold each model before '
      'models are stacked.'
    )
