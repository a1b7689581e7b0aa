"""Changing the normalizations of an nnx model, keeping what carries over."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from bn_research import norms
from bn_research.layers.nnx.carrying import as_norm, with_normalization
from bn_research.layers.nnx.folding import fold
from bn_research.layers.nnx.tree import (
  Path,
  at,
  normalizations,
  places_of,
  put_all,
)

__all__ = ['as_norm', 'at', 'fold', 'normalizations', 'replace']

# Any, because what a layer holds need not be a point of the product.
Change = Callable[[Any], norms.Normalizer]


def replace(
  model: nnx.Module,
  change: Change,
  where: Callable[[Path], bool] = lambda path: True,
) -> None:
  """Replaces normalizations in a model, in place: all that were chosen or none.

  Scale, bias, other learned arrays and running statistics carry over, with
  their sharding and other metadata, if the new normalization means the same by
  them. What only the new normalization has starts afresh. `dtype` and
  `param_dtype` carry over. A layer that the model has in several places stays
  one layer. Models that `nnx.vmap` stacked along leading axes stay stacked.

  Args:
    model: Its layers `Norm` and `BatchNorm`, Flax's own too, are replaced by
      `Norm`.
    change: From the normalization of a layer to the new one, such as
      `norms.freeze`, `lambda _: norms.group_norm(8)`, or
      `lambda norm: norms.sync(norm, 'data')`.
    where: Which layers, by path; all of them by default.

  Raises:
    ValueError: If there is no such layer, or `change` refuses one. The model is
      then as it was.
  """
  known = [places_of(model, path) for path, _ in normalizations(model)]
  chosen = [places for places in known if any(map(where, places))]
  if not chosen:
    raise ValueError(
      f'no normalization to replace; the model has them at: {known}.'
    )
  if ((),) in chosen:
    raise ValueError(
      'the model is itself a normalization, which nothing holds in place of '
      'which to put another; give the module that holds it.'
    )
  new: list[tuple[tuple[Path, ...], nnx.Module]] = []
  for places in chosen:
    old = as_norm(at(model, places[0]))
    new.append((places, with_normalization(old, change(old.normalization))))
  put_all(model, new)
