"""Timing in turns: what the benchmarks have in common."""

import ctypes
import math
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import jax

Turn = Callable[[], object]  # one timed call, which waits for its result

# PyTorch's threads spin for milliseconds after their work is done, on the cores
# of whoever comes next: batch norm at (32, 14, 14, 256) took 4 ms for 1.6.
_SETTLE_SECONDS = 0.03
_LEAST_SECONDS = 0.004

# Of malloc.h. One arena: threads' own would hand large blocks back at once.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def in_turns(turns: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
  """Calls each in turn; returns seconds of a call.

  What is timed are calls for some milliseconds, after as many that are not
  timed: they find the caches and the threads as calls of their own left them.
  """
  calls = {}
  for name, turn in turns.items():
    _seconds(turn, 1)
    calls[name] = max(1, int(_LEAST_SECONDS / _seconds(turn, 3)))
    settle(name)
  seconds: dict[str, list[float]] = {name: [] for name in turns}
  for _ in range(rounds):
    for name, turn in turns.items():
      _seconds(turn, calls[name])
      seconds[name].append(_seconds(turn, calls[name]))
      settle(name)
  return seconds


def _seconds(turn: Turn, calls: int) -> float:
  start = time.perf_counter()
  for _ in range(calls):
    turn()
  return (time.perf_counter() - start) / calls


def settle(name: str) -> None:
  """Waits until the threads of a turn that was PyTorch's are asleep."""
  if name.startswith('torch'):
    time.sleep(_SETTLE_SECONDS)


def rounds_within(turns: Mapping[str, Turn], seconds: float) -> int:
  """How many rounds take about so long: odd, between 7 and 201."""
  start = time.perf_counter()
  in_turns(turns, 1)
  one = time.perf_counter() - start
  return min(201, max(7, int(seconds / one))) | 1


def keep_pages() -> None:
  """Has freed memory kept, as the buffers of a training loop are.

  Else every call gets its large results as fresh pages of the system, at a cost
  like that of the normalization itself, and not the same from call to call.
  Does nothing where the C library is not glibc.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def ratio(ours: list[float], theirs: list[float]) -> float:
  """The median of the ratios of paired turns."""
  pairs = zip(ours, theirs, strict=True)
  return statistics.median(a / b for a, b in pairs)


def geometric_mean(ratios: list[float]) -> float:
  """exp of the mean of the logarithms."""
  return math.exp(statistics.mean(map(math.log, ratios)))


def device() -> str:
  """Names what the numbers were taken on."""
  name = f'{len(jax.devices())} x {jax.devices()[0].device_kind}'
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if jax.default_backend() == 'cpu' and cpuinfo.exists():
    lines = cpuinfo.read_text().splitlines()
    names = [l.split(':')[1].strip() for l in lines if l.startswith('model n')]
    name = f'{len(names)} x {names[0]}' if names else name
  return f'{name}, jax {jax.__version__}, Python {platform.python_version()}'
