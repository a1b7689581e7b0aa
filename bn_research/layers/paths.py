"""Paths of layers in messages, and the pairs of paths of a fold."""

from collections.abc import Iterable, Mapping
from typing import Any

Path = tuple[Any, ...]

# A ResNet has hundreds of layers, too many for the line of an error.
_SHOWN = 8


def listed(paths: Iterable[Any]) -> str:
  """Returns the first paths as a text, and how many paths are left out."""
  paths = list(paths)
  text = ', '.join(map(str, paths[:_SHOWN])) or 'none'
  rest = len(paths) - _SHOWN
  return f'{text} and {rest} more' if rest > 0 else text


def checked_pairs(pairs: Mapping[Path, Path]) -> dict[Path, Path]:
  """Returns the pairs of a fold, after checks.

  Args:
    pairs: From the path of each normalization to the path of the layer before.

  Raises:
    ValueError: If a path is not a tuple, or if two normalizations have the same
      layer.
  """
  if not isinstance(pairs, Mapping):
    raise ValueError(
      f'pairs is a {type(pairs).__name__}; give a dict from the path of each '
      'normalization to the path of the layer before.'
    )
  for path in (*pairs.keys(), *pairs.values()):
    if not isinstance(path, tuple):
      raise ValueError(
        f'the path {path!r} in pairs is a {type(path).__name__}; give a tuple '
        "of names and keys, such as ('block', 'norm')."
      )
  if len(set(pairs.values())) < len(pairs):
    raise ValueError(
      f'pairs={dict(pairs)} fold two normalizations into the same layer; give '
      'each normalization a different layer.'
    )
  return dict(pairs)
