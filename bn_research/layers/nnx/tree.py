"""Paths in a model, and the modules at the paths."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import nnx

from bn_research.layers.nnx.norm import Norm

Path = tuple[Any, ...]


def normalizations(model: nnx.Module) -> Iterator[tuple[Path, nnx.Module]]:
  """Yields path and layer of each `Norm` and each `BatchNorm`.

  Args:
    model: The model, which may change during the iteration.
  """
  # A list, because the caller may replace modules during the iteration.
  for path, module in list(nnx.iter_modules(model)):
    if isinstance(module, Norm | nnx.BatchNorm):
      yield path, module


def modules(model: nnx.Module) -> dict[Path, nnx.Module]:
  """Returns all modules of a model by path, a shared module at every path.

  Args:
    model: The model.
  """
  found = dict(nnx.iter_modules(model))
  for places in nnx.find_duplicates(model, only=nnx.Module):
    found |= {path: at(model, path) for path in places}
  return found


@contextlib.contextmanager
def errors_at(path: Path) -> Iterator[None]:
  """Puts the path of a layer in front of a ValueError about the layer.

  Args:
    path: The path of the layer.
  """
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def places_of(model: nnx.Module, path: Path) -> tuple[Path, ...]:
  """Returns all paths to a module, which a model may share between places.

  Args:
    model: The model.
    path: A path to the module.
  """
  for places in nnx.find_duplicates(model, only=nnx.Module):
    if path in places:
      return tuple(places)
  return (path,)


def at(model: Any, path: Path) -> Any:
  """Returns the module, or the container of modules, at a path.

  Args:
    model: The model.
    path: Names of attributes and keys of containers, outermost first.
  """
  for key in path:
    model = _child(model, key)
  return model


def put_all(
  model: nnx.Module, modules: list[tuple[tuple[Path, ...], nnx.Module]]
) -> None:
  """Puts modules into a model, in place.

  Args:
    model: The model.
    modules: Pairs of the paths of a module, from `places_of`, and the module.

  Raises:
    ValueError: If a container can neither be changed nor rebuilt. The model is
      then unchanged.
  """
  done: list[tuple[Path, Any]] = []
  try:
    for places, module in modules:
      for path in places:
        before = at(model, path)
        _put(model, path, module)
        done.append((path, before))
  except Exception as error:
    # The containers of users raise errors of any type.
    for path, before in reversed(done):
      _put(model, path, before)
    raise ValueError(
      f'the container of the layer at {path} cannot be changed: {error}; keep '
      'the layer in an attribute, a dict, a list or a tuple.'
    ) from error


def _put(model: nnx.Module, path: Path, child: Any) -> None:
  parent = at(model, path[:-1])
  if isinstance(parent, tuple):
    # A tuple cannot change: a new tuple replaces the tuple in the parent.
    _put(model, path[:-1], _rebuilt(parent, path[-1], child))
  elif _is_container(parent):
    parent[path[-1]] = child
  else:
    # nnx refuses a container of modules as an attribute unless marked as data.
    held = child if isinstance(child, nnx.Module) else nnx.data(child)
    setattr(parent, str(path[-1]), held)


def _child(parent: Any, key: Any) -> Any:
  # The paths of nnx have the field names of a named tuple, not the indices.
  if _is_container(parent) and not _is_named(parent):
    return parent[key]
  return getattr(parent, str(key))


def _is_container(node: Any) -> bool:
  """Returns whether the children of a node are items instead of attributes."""
  return isinstance(node, Mapping | Sequence | nnx.List | nnx.Dict)


def _is_named(node: Any) -> bool:
  return hasattr(node, '_fields')


def _rebuilt(parent: Any, key: Any, child: Any) -> Any:
  if _is_named(parent):
    return parent._replace(**{str(key): child})
  return (*parent[:key], child, *parent[key + 1 :])
