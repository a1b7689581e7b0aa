"""In which order a model calls its normalizations."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from bn_research.layers.nnx import carrying, surgery
from bn_research.layers.nnx.tree import Path, at

Call = Callable[[nnx.Module, Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class _Noted:
  """A normalizer with a record of the calls."""

  normalizer: Any
  path: Path
  calls: list[Path]

  def __getattr__(self, name: str) -> Any:
    return getattr(self.normalizer, name)

  def apply(self, x: jax.Array, *args: Any, **options: Any) -> Any:
    self.calls.append(self.path)
    # The name marks the place of the call in the traced program.
    return self.normalizer.apply(
      checkpoint_name(x, str(self.path)), *args, **options
    )


def in_order_of_calls(
  model: nnx.Module, paths: Sequence[Path], batch: Any, call: Call
) -> list[Path]:
  """Returns the paths in the order of the first calls, uncalled layers last.

  Args:
    model: The model. It stays as it is.
    paths: Where the normalizations are.
    batch: One batch.
    call: A function of (model, batch) that runs the forward pass.

  Raises:
    ValueError: If a loop calls the slices of a stacked layer.
  """
  # Each normalizer of the copy records calls. A trace runs every call once
  # and computes nothing.
  probe = nnx.clone(model)
  noted: list[Path] = []
  for path in paths:
    noting = functools.partial(_Noted, path=path, calls=noted)
    surgery.replace(probe, noting, path.__eq__)
  graphdef, state = nnx.split(probe)

  def run(state, batch):
    call(nnx.merge(graphdef, state, copy=True), batch)

  program = jax.make_jaxpr(run)(state, batch)
  _require_no_scan(model, paths, _names_in_loops(program.jaxpr))
  return list(dict.fromkeys((*noted, *paths)))


def _require_no_scan(model, paths, names: set[str]) -> None:
  """Raises a ValueError if a loop calls the slices of a stacked layer.

  The slices of a layer are measured together. In a loop, a later slice needs
  the moments of the slices before.
  """
  for path in paths:
    layer = carrying.as_norm(at(model, path))
    if str(path) in names and carrying.stacked_along(layer):
      raise ValueError(
        f'the layers stacked at {path} are called one after another by a loop '
        'such as nnx.scan, and cannot be measured in order; call reestimate '
        'with in_order=False.'
      )


def _names_in_loops(jaxpr: Any, is_in_loop: bool = False) -> set[str]:
  """Returns the names that `checkpoint_name` gives inside of loops."""
  names: set[str] = set()
  for equation in jaxpr.eqns:
    kind = equation.primitive.name
    if kind == 'name' and is_in_loop:
      names.add(equation.params['name'])
    is_inside = is_in_loop or kind in ('scan', 'while')
    for inner in jax.tree.leaves(list(equation.params.values())):
      program = getattr(inner, 'jaxpr', inner)
      if hasattr(program, 'eqns'):
        names |= _names_in_loops(program, is_inside)
  return names
