"""Places in a model: paths, and replacing what stands at a path."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import nnx

from bn_research.layers.nnx.norm import Norm

Path = tuple[Any, ...]


def normalizations(model: nnx.Module) -> Iterator[tuple[Path, nnx.Module]]:
  """Yields path and layer of each `Norm` and each `BatchNorm`."""
  for path, module in list(nnx.iter_modules(model)):
    if isinstance(module, Norm | nnx.BatchNorm):
      yield path, module


def places_of(model: nnx.Module, path: Path) -> tuple[Path, ...]:
  """Returns all paths to the module at a path."""
  for places in nnx.find_duplicates(model, only=nnx.Module):
    if path in places:
      return tuple(places)
  return (path,)


def at(model: Any, path: Path) -> Any:
  """Returns the module, or the container, at a path."""
  for key in path:
    model = _child(model, key)
  return model


def put_all(
  model: nnx.Module, modules: list[tuple[tuple[Path, ...], nnx.Module]]
) -> None:
  """Puts each module in its places, all of them or none.

  Args:
    model: The model, changed in place.
    modules: Places, as `places_of` returns them, and what goes there.

  Raises:
    ValueError: If a container can neither be changed nor rebuilt. The model is
      then as it was.
  """
  done: list[tuple[Path, Any]] = []
  try:
    for places, module in modules:
      for path in places:
        before = at(model, path)
        _put(model, path, module)
        done.append((path, before))
  except Exception as error:
    for path, before in reversed(done):
      _put(model, path, before)
    raise ValueError(
      f'the container of the layer at {path} cannot be changed: {error}; hold '
      'the layer as an attribute, or in a dict, list or tuple.'
    ) from error


def _put(model: nnx.Module, path: Path, child: Any) -> None:
  parent = at(model, path[:-1])
  if isinstance(parent, tuple):
    # The tuple is made anew, and put in the place of the old one.
    _put(model, path[:-1], _rebuilt(parent, path[-1], child))
  elif _is_container(parent):
    parent[path[-1]] = child
  else:
    held = child if isinstance(child, nnx.Module) else nnx.data(child)
    setattr(parent, str(path[-1]), held)


def _child(parent: Any, key: Any) -> Any:
  if _is_container(parent) and not _is_named(parent):
    return parent[key]
  return getattr(parent, str(key))


def _is_container(node: Any) -> bool:
  """Whether children are items of the node; else they are attributes."""
  return isinstance(node, Mapping | Sequence | nnx.List | nnx.Dict)


def _is_named(node: Any) -> bool:
  return hasattr(node, '_fields')


def _rebuilt(parent: Any, key: Any, child: Any) -> Any:
  if _is_named(parent):
    return parent._replace(**{str(key): child})
  return (*parent[:key], child, *parent[key + 1 :])
