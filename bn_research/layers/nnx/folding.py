"""Folding the normalizations of an nnx model into the layers before them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import norms
from bn_research.layers.nnx.carrying import as_norm, state_of
from bn_research.layers.nnx.norm import Norm
from bn_research.layers.nnx.promotion import value
from bn_research.layers.nnx.tree import Path, at, places_of, put_all

# Layers whose kernel has its outputs last, or (transposed) last but one, and
# that do nothing else to their output than to add a bias.
_FOLDABLE = (nnx.Linear, nnx.Conv, nnx.ConvTranspose)


def fold(model: nnx.Module, pairs: Mapping[Path, Path]) -> None:
  """Folds normalizations into the layers before them, in place, for inference.

  All pairs are folded, or none.

  Args:
    model: The model. The folded normalizations become none.
    pairs: From the path of each normalization to the path of the `nnx.Linear`,
      `nnx.Conv` or `nnx.ConvTranspose` whose output it normalizes.

  Raises:
    ValueError: If a normalization remembers nothing, and so is not affine, or
      mixes outputs that see different inputs; or if a layer is of another
      kind, is used in several places, or is stacked. The model is then as it
      was.
  """
  if len(set(pairs.values())) < len(pairs):
    raise ValueError(
      f'pairs={dict(pairs)} fold two normalizations into one layer; give each '
      'normalization a layer of its own.'
    )
  folded = [_folded(model, *pair) for pair in pairs.items()]
  put_all(model, [new for new, _ in folded])
  for _, write in folded:
    write()


def _folded(
  model: nnx.Module, norm_path: Path, layer_path: Path
) -> tuple[tuple[tuple[Path, ...], nnx.Module], Callable[[], None]]:
  """Returns what replaces a normalization, and what changes the layer."""
  norm, layer = as_norm(at(model, norm_path)), at(model, layer_path)
  _require_foldable(model, norm, norm_path, layer, layer_path)
  # A transposed kernel has its outputs before its inputs.
  is_transposed = getattr(layer, 'transpose_kernel', False)
  turn = partial(jnp.swapaxes, axis1=-1, axis2=-2) if is_transposed else _same
  normalization: Any = norm.normalization
  kernel, bias = norms.fold(
    turn(_masked_kernel(layer)),
    value(layer.bias),
    normalization,
    state_of(norm),
    value(norm.scale),
    value(norm.bias),
    getattr(layer, 'feature_group_count', 1),
  )
  none = Norm(
    norms.none(),
    norm.num_features,
    use_bias=False,
    dtype=norm.dtype,
    rngs=nnx.Rngs(0),
  )

  def write() -> None:
    layer.kernel.set_value(turn(kernel))
    if layer.bias is None:
      layer.bias, layer.use_bias = nnx.data(nnx.Param(bias)), True
    else:
      layer.bias.set_value(bias)
    if getattr(layer, 'mask', None) is not None:
      # The kernel holds the mask now: a whitening gives what is masked in one
      # output some of another's.
      layer.mask = None

  return ((norm_path,), none), write


def _same(kernel: jax.Array) -> jax.Array:
  return kernel


def _masked_kernel(layer: Any) -> jax.Array:
  mask = getattr(layer, 'mask', None)
  kernel = layer.kernel[...]
  return kernel if mask is None else kernel * mask


def _require_foldable(model, norm, norm_path, layer, layer_path) -> None:
  if not norm.normalization.remembers:
    raise ValueError(
      f'{norm_path}: {norm.normalization} depends on the example at inference '
      'too, so it cannot be folded into a kernel.'
    )
  if type(layer) not in _FOLDABLE:
    names = ', '.join(f'nnx.{kind.__name__}' for kind in _FOLDABLE)
    raise ValueError(
      f'{layer_path} is a {type(layer).__name__}, whose outputs need not be '
      f'the last axis of its kernel; only {names} can be folded into.'
    )
  for path in (norm_path, layer_path):
    if len(places_of(model, path)) > 1:
      raise ValueError(
        f'{path} is used in several places, {places_of(model, path)}; a layer '
        'that is shared cannot be folded.'
      )
  sizes = getattr(layer, 'kernel_size', ())
  ndim = 2 + (1 if isinstance(sizes, int) else len(sizes))
  if layer.kernel[...].ndim != ndim:
    raise ValueError(
      f'{layer_path} has a kernel of shape {layer.kernel[...].shape}, of '
      f'{ndim} axes for one model; fold before models are stacked.'
    )
