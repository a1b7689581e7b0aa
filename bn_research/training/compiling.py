"""Traces programs at once, and compiles the programs in threads."""

from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bn_research import registry
from bn_research.training import mesh as mesh_lib
from bn_research.training.state import TrainState


class Compiler:
  """Compiles the programs of a run in parallel, for replicated arrays."""

  def __init__(self, mesh: Mesh):
    """Starts the threads.

    Args:
      mesh: The device mesh. The methods need this mesh in context, by
        `jax.set_mesh`.
    """
    self._mesh = mesh
    self._whole = mesh_lib.replicated(mesh)
    self.platform = mesh.devices.flat[0].platform
    # XLA compiles without the lock of the Python interpreter (GIL), hence
    # threads compile in parallel.
    self._pool = futures.ThreadPoolExecutor()

  def wait(self) -> None:
    """Waits until all programs are compiled."""
    self._pool.shutdown()

  def close(self) -> None:
    """Takes no further programs, and does not wait for the threads."""
    self._pool.shutdown(wait=False)

  def as_arrays(self, tree: Any) -> Any:
    """Returns the result of a program as arrays, which here are arrays."""
    return tree

  def like(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns an abstract array with a copy on each device."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._whole)

  def like_state(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns an abstract array of a training state."""
    sharding = mesh_lib.of_state(leaf, self._mesh)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  def int32(self, *shape: int) -> jax.ShapeDtypeStruct:
    """Returns an abstract int32 array with a copy on each device."""
    return self.like(jax.ShapeDtypeStruct(shape, np.int32))

  def ahead(
    self,
    function: Callable[..., Any],
    *args: Any,
    options: dict[str, Any] | None = None,
    where: str = 'config.model',
    **jit_options: Any,
  ) -> Callable[..., Any]:
    """Traces a function now, and compiles the program in a thread.

    Args:
      function: A function of arrays.
      *args: Abstract or concrete arguments of the function.
      options: None, or compiler options of XLA.
      where: The place in the config that an error while tracing names.
      **jit_options: Further arguments of `jax.jit`.

    Returns:
      The compiled function. The first call waits for the compiler.
    """
    lowered = self.trace(function, *args, where=where, **jit_options).lower()
    compiled = self._pool.submit(lowered.compile, options)
    return lambda *args: compiled.result()(*args)

  def trace(
    self,
    function: Callable[..., Any],
    *args: Any,
    where: str = 'config.model',
    **jit_options: Any,
  ) -> Any:
    """Traces a function; see `ahead`."""
    # Tracing calls the model and the probes, which raise the errors of a wrong
    # config.
    with registry.mistakes_in(where):
      # A program returns arrays with the shardings that the next program
      # expects.
      shardings = self._of_results(function, args)
      jitted = jax.jit(function, out_shardings=shardings, **jit_options)
      return jitted.trace(*args)

  def _of_results(self, function: Callable[..., Any], args: Any) -> Any:
    """Returns the shardings of the results of a function."""
    if 'model' not in self._mesh.shape:
      return self._whole
    kinds = (TrainState, nnx.State)
    return jax.tree.map(
      lambda part: jax.tree.map(
        lambda leaf: (
          mesh_lib.of_state(leaf, self._mesh)
          if isinstance(part, kinds)
          else self._whole
        ),
        part,
      ),
      jax.eval_shape(function, *args),
      is_leaf=lambda part: isinstance(part, kinds),
    )
