"""Changes the normalizations of an nnx model, and keeps the variables."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from bn_research import norms
from bn_research.layers import normalizers
from bn_research.layers.nnx.carrying import (
  as_norm,
  state_of,
  with_normalization,
)
from bn_research.layers.nnx.folding import fold
from bn_research.layers.nnx.tree import (
  Path,
  at,
  errors_at,
  normalizations,
  places_of,
  put_all,
)
from bn_research.layers.paths import listed

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
      including `nnx.BatchNorm`. A subclass of `BatchNorm` with its own
      `__call__`, or a custom `promote_dtype`, is refused, because a `Norm`
      would lose this code of the user.
    change: A function from the normalization of a layer to the new
      normalization, such as `norms.freeze`, `lambda _: norms.group_norm(8)`, or
      `lambda norm: norms.sync(norm, 'data')`.
    where: A function from the path of a layer to whether the layer is replaced;
      by default all layers are replaced.

  Raises:
    TypeError: If `change` is no function, or returns no normalization.
    ValueError: If no layer is chosen, if a new normalization does not fit the
      features of the layer, or if a layer cannot become a `Norm`. An error of
      `change` is raised as it is. After each error the model is unchanged.
  """
  if not callable(change):
    raise TypeError(
      f'change is a {type(change).__name__}; give a function from the old '
      'normalization to the new, such as lambda _: norms.group_norm(8).'
    )
  known = [places_of(model, path) for path, _ in normalizations(model)]
  chosen = [places for places in known if any(map(where, places))]
  if not chosen:
    raise _nothing_chosen([path for places in known for path in places])
  if ((),) in chosen:
    raise ValueError(
      'the model is itself a normalization and cannot be replaced in place; '
      'give the module that has the normalization as an attribute.'
    )
  # All layers are made before the first change, because an error must leave the
  # model unchanged.
  new: list[tuple[tuple[Path, ...], nnx.Module]] = []
  for places in chosen:
    new.append((places, _replacement(at(model, places[0]), change, places[0])))
  put_all(model, new)


def _replacement(layer: nnx.Module, change: Change, path: Path) -> nnx.Module:
  with errors_at(path):
    old = as_norm(layer)
  changed = change(old.normalization)
  normalizers.require(changed, f'{path}: the result of `change`')
  with errors_at(path):
    return with_normalization(old, changed)


def _nothing_chosen(known: list[Path]) -> ValueError:
  if known:
    return ValueError(
      'no normalization to replace: `where` chooses none of the paths '
      f'{listed(known)}.'
    )
  return ValueError(
    'no normalization to replace: `replace` finds Norm of this package, and '
    'BatchNorm of this package or of Flax, and the model has none of these; '
    'assign a layers.Norm to the attribute of a different layer.'
  )
