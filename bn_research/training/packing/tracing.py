"""Traces the programs of a run, which a pack compiles for many runs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bn_research import registry
from bn_research.training import compiling, keys
from bn_research.training.packing import stacking


class Traced(NamedTuple):
  """A traced program.

  Attributes:
    name: The name of the function, for messages.
    program: The equations.
    args: The leaves of the arguments: arrays, or shapes.
    tree: The structure of the result.
    donated: Whether the first argument of the function may be written over,
      for each leaf.
    options: None, or compiler options of XLA.
  """

  name: str
  program: Any
  args: list[Any]
  tree: Any
  donated: list[bool]
  options: dict[str, Any] | None


def is_shared(leaf: Any) -> bool:
  """Returns whether an argument is an array of all runs, such as the data."""
  return isinstance(leaf, jax.Array) and not keys.is_key(leaf)


class Tracer(compiling.Compiler):
  """Takes the place of a compiler, and compiles nothing.

  Programs are traced without a mesh, because each run of a pack is on one
  device.

  Attributes:
    programs: The traced programs, in the order of `ahead`.
    call: The function of the index of a program and of arguments that
      computes. The pack sets this attribute.
    ready: The function that waits until the programs are compiled. The pack
      sets this attribute.
  """

  def __init__(self, mesh: Mesh):
    """Traces nothing yet.

    Args:
      mesh: A mesh of the device of the arrays outside of programs.
    """
    super().__init__(mesh)
    self.programs: list[Traced] = []
    self.call: Callable[[int, tuple[Any, ...]], Any]
    self.ready: Callable[[], None]

  def wait(self) -> None:
    """Waits until the pack has compiled all programs."""
    self.ready()

  def as_arrays(self, tree: Any) -> Any:
    """Returns the result of a program with arrays in the place of parts."""
    return stacking.whole(tree)

  def ahead(
    self,
    function: Callable[..., Any],
    *args: Any,
    options: dict[str, Any] | None = None,
    where: str = 'config.model',
    **jit_options: Any,
  ) -> Callable[..., Any]:
    """Traces a function; see `compiling.Compiler.ahead`.

    Returns:
      The function of a run in a pack. A call waits for the other runs.
    """
    traced = self.trace(function, *args, where=where)
    given = jit_options.get('donate_argnums')
    leaves = [jax.tree.leaves(arg) for arg in args]
    donated = [k == given for k, some in enumerate(leaves) for _ in some]
    index = len(self.programs)
    self.programs.append(
      Traced(
        getattr(function, 'func', function).__name__,
        traced.jaxpr,
        [leaf for some in leaves for leaf in some],
        jax.tree.structure(traced.out_info),
        donated,
        options,
      )
    )
    return functools.partial(self._call, index)

  def trace(
    self,
    function: Callable[..., Any],
    *args: Any,
    where: str = 'config.model',
    **jit_options: Any,
  ) -> Any:
    """Traces a function; see `compiling.Compiler.trace`."""
    abstract = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), args
    )
    with registry.mistakes_in(where):
      return jax.jit(function, **jit_options).trace(*abstract)

  def _call(self, index: int, *args: Any) -> Any:
    return self.call(index, args)
