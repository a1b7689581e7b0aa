"""How many runs a pack has room for, from the traced programs alone."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

from bn_research.training.packing import tracing
from bn_research.training.packing.tracing import Traced, Tracer

# XLA may keep arrays longer than the order of the operations asks for, and
# other processes need memory as well.
_SHARE = 0.5


def most(
  tracer: Tracer, devices: Sequence[jax.Device], is_vectorized: bool
) -> int:
  """Returns the largest number of runs that fit the memory, at least 1.

  Args:
    tracer: The traced programs of a run.
    devices: The devices of the pack, which share the runs.
    is_vectorized: Whether a device computes the runs at once. Otherwise, only
      one run at a time needs memory for its intermediate arrays.
  """
  kept = max(map(_own, tracer.programs))
  between = max(peak(traced.program.jaxpr) for traced in tracer.programs)
  shared = {
    id(leaf): leaf.nbytes
    for traced in tracer.programs
    for leaf in traced.args
    if tracing.is_shared(leaf)
  }
  free = _SHARE * _free(devices[0]) - sum(shared.values())
  if devices[0].platform == 'cpu':
    free /= len(devices)  # The devices of a CPU share one memory.
  if is_vectorized:
    a_device = free / (kept + between)
  else:
    a_device = (free - between) / kept
  return max(1, int(a_device) * len(devices))


def _own(traced: Traced) -> int:
  """Returns the bytes of the arguments of a run alone, and of the results."""
  pairs = zip(traced.program.jaxpr.invars, traced.args, strict=True)
  own = [var for var, leaf in pairs if not tracing.is_shared(leaf)]
  return _bytes(own) + _bytes(traced.program.jaxpr.outvars)


def peak(jaxpr: Any) -> int:
  """Returns the most bytes of intermediate arrays at a time.

  The operations are taken in the order of the program. The arguments do not
  count, and an array counts up to its last use.

  Args:
    jaxpr: A traced program.
  """
  last = {
    atom: k
    for k, equation in enumerate(jaxpr.eqns)
    for atom in equation.invars
    if not isinstance(atom, core.Literal)
  }
  most, live = 0, 0
  made: dict[Any, int] = {}
  for k, equation in enumerate(jaxpr.eqns):
    for var in equation.outvars:
      made[var] = _bytes([var])
      live += made[var]
    inner = [peak(one) for one in core.jaxprs_in_params(equation.params)]
    most = max(most, live + max(inner, default=0))
    for atom in [*equation.invars, *equation.outvars]:
      if not isinstance(atom, core.Literal) and last.get(atom, k) == k:
        live -= made.pop(atom, 0)
  return most


def _bytes(variables: Sequence[Any]) -> int:
  """Returns the bytes of variables."""
  return sum(
    math.prod(var.aval.shape) * getattr(var.aval.dtype, 'itemsize', 16)
    for var in variables
  )


def _free(device: jax.Device) -> int:
  """Returns the free bytes of a device."""
  stats = device.memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats['bytes_in_use']
  return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
