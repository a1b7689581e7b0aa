"""Changes the normalizations of an nnx model, and keeps the variables."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from bn_research import norms
from bn_research.layers.nnx.carrying import (
  as_norm,
  state_of,
  with_normalization,
)
from bn_research.layers.nnx.folding import fold
from bn_research.layers.nnx.tree import (
  Path,
  at,
  normalizations,
  places_of,
  put_all,
)

__all__ = ['as_norm', 'at', 'fold', 'normalizations', 'replace', 'state_of']

# Any, because a layer may hold a combination, which is no Normalization.
Change = Callable[[Any], norms.Normalizer]


def replace(
  model: nnx.Module,
  change: Change,
  where: Callable[[Path], bool] = lambda path: True,
) -> None:
  """Replaces the normalizations of a model, in place.

  Scale, bias, `dtype` and `param_dtype` carry over. Further learned arrays and
  running statistics carry over if shapes and meaning are the same in the new
  normalization, and start afresh if not. Variables keep metadata, such as a
  sharding. Scales and biases that layers share stay shared, and statistics do
  not. A layer in several places of the model stays a single layer. Models that
  `nnx.vmap` stacked along leading axes stay stacked. Either all chosen layers
  are replaced, or the model is unchanged.

  Args:
    model: The model. A `Norm` replaces each chosen `Norm` or `BatchNorm`,
      including `nnx.BatchNorm`.
    change: A function from the normalization of a layer to the new
      normalization, such as `norms.freeze`, `lambda _: norms.group_norm(8)`, or
      `lambda norm: norms.sync(norm, 'data')`.
    where: A function from the path of a layer to whether the layer is replaced;
      by default all layers are replaced.

  Raises:
    ValueError: If no layer is chosen, or if `change` raises. The model is then
      unchanged.
  """
  known = [places_of(model, path) for path, _ in normalizations(model)]
  chosen = [places for places in known if any(map(where, places))]
  if not chosen:
    raise ValueError(
      f'no normalization to replace; choose among the paths {known}.'
    )
  if ((),) in chosen:
    raise ValueError(
      'the model is itself a normalization and cannot be replaced in place; '
      'give the module that has the normalization as an attribute.'
    )
  # All layers are made before the first change, because an error must leave the
  # model unchanged.
  new: list[tuple[tuple[Path, ...], nnx.Module]] = []
  for places in chosen:
    old = as_norm(at(model, places[0]))
    new.append((places, with_normalization(old, change(old.normalization))))
  put_all(model, new)
