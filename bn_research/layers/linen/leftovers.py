"""Layers without a counterpart in different variables, as of other names."""

from collections.abc import Iterator, Mapping
from typing import Any

from bn_research.layers.paths import listed

Path = tuple[str, ...]


def require_counterparts(old: Any, new: Any) -> None:
  """Checks that no layer of `new` starts afresh because of its name.

  An automatic name contains the class: `BatchNorm_0` becomes `Norm_0`.

  Args:
    old: Variables of the model before the change.
    new: Variables of the changed model.

  Raises:
    ValueError: If layers of `new` are not in `old`, while layers of `old` are
      not in `new`.
  """
  before, after = map(_layers, (old, new))
  unmatched = [path for path in after if path not in before]
  left_over = [path for path in before if path not in after]
  if unmatched and left_over:
    raise ValueError(
      f'the layers {listed(unmatched)} are only in the new variables, and the '
      f'layers {listed(left_over)} are only in the old variables; give the '
      'layers the same names, or remove the old layers from `old` if the new '
      'layers should start afresh.'
    )


def _layers(variables: Mapping[str, Any]) -> list[Path]:
  """Returns the paths of the modules with arrays, in all collections."""
  paths = (
    path for tree in variables.values() for path in _with_arrays(tree, ())
  )
  return list(dict.fromkeys(paths))


def _with_arrays(tree: Any, path: Path) -> Iterator[Path]:
  if not isinstance(tree, Mapping):
    return
  is_array = [not isinstance(child, Mapping) for child in tree.values()]
  # A dict may also hold the learned arrays of a layer, or, in a checkpoint, the
  # state of a combination.
  if any(is_array) or {'learned', 'state'} & tree.keys():
    yield path
  # The dicts beside running statistics are parts of the statistics.
  if {'learned', 'state', 'mean'} & tree.keys():
    return
  for name, child in tree.items():
    yield from _with_arrays(child, (*path, str(name)))
