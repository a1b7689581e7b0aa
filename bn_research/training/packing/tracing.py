"""Traces the programs of a run, which a pack compiles for many runs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from bn_research import registry
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


class Tracer:
  """Takes the place of `compiling.Compiler`, and compiles nothing.

  Programs are traced without a mesh, because each run of a pack is on one
  device.

  Attributes:
    platform: The platform of the devices, for example 'cpu'.
    programs: The traced programs, in the order of `ahead`.
    call: The function of the index of a program and of arguments that
      computes. The pack sets this attribute.
    ready: The function that waits until the programs are compiled. The pack
      sets this attribute.
  """

  def __init__(self, device: jax.Device):
    """Traces nothing yet.

    Args:
      device: The device of the arrays outside of programs.
    """
    self.platform = device.platform
    self.programs: list[Traced] = []
    self.call: Callable[[int, tuple[Any, ...]], Any]
    self.ready: Callable[[], None]
    self._sharding = SingleDeviceSharding(device)

  def wait(self) -> None:
    """Waits until all programs are compiled."""
    self.ready()

  def close(self) -> None:
    """Does nothing, because no thread compiles."""

  def as_arrays(self, tree: Any) -> Any:
    """Returns the result of a program with arrays in the place of parts."""
    return stacking.whole(tree)

  def like(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns an abstract array of a single run."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._sharding)

  def like_state(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns an abstract array of the training state of a single run."""
    return self.like(leaf)

  def int32(self, *shape: int) -> jax.ShapeDtypeStruct:
    """Returns an abstract int32 array of a single run."""
    return self.like(jax.ShapeDtypeStruct(shape, np.int32))

  def ahead(
    self,
    function: Callable[..., Any],
    *args: Any,
    options: dict[str, Any] | None = None,
    where: str = 'config.model',
    donate_argnums: int | None = None,
  ) -> Callable[..., Any]:
    """Traces a function; see `compiling.Compiler.ahead`.

    Returns:
      The function of a run in a pack. A call waits for the other runs.
    """
    traced = self.trace(function, *args, where=where)
    leaves = [jax.tree.leaves(arg) for arg in args]
    donated = [
      k == donate_argnums for k, some in enumerate(leaves) for _ in some
    ]
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
  ) -> Any:
    """Traces a function; see `compiling.Compiler.trace`."""
    abstract = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), args
    )
    with registry.mistakes_in(where):
      return jax.jit(function).trace(*abstract)

  def _call(self, index: int, *args: Any) -> Any:
    return self.call(index, args)
