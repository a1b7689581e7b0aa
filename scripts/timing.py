"""Timing in turns: what the benchmarks have in common."""

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import jax

Turn = Callable[[], object]  # one timed call, which waits for its result

# PyTorch's threads spin for milliseconds after their work is done, on the cores
# of whoever comes next: batch norm at (32, 14, 14, 256) took 4 ms for 1.6.
_SETTLE_SECONDS = 0.03


def in_turns(turns: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
  """Calls each in turn, after two calls that warm up; returns seconds."""
  for name, turn in turns.items():
    turn()
    turn()
    settle(name)
  seconds: dict[str, list[float]] = {name: [] for name in turns}
  for _ in range(rounds):
    for name, turn in turns.items():
      start = time.perf_counter()
      turn()
      seconds[name].append(time.perf_counter() - start)
      settle(name)
  return seconds


def settle(name: str) -> None:
  """Waits until the threads of a turn that was PyTorch's are asleep."""
  if name.startswith('torch'):
    time.sleep(_SETTLE_SECONDS)


def rounds_within(turns: Mapping[str, Turn], seconds: float) -> int:
  """How many rounds take about so long: odd, between 7 and 201."""
  for turn in turns.values():
    turn()
  start = time.perf_counter()
  for turn in turns.values():
    turn()
  one = time.perf_counter() - start
  return min(201, max(7, int(seconds / one))) | 1


def ratio(ours: list[float], theirs: list[float]) -> float:
  """The median of the ratios of paired turns."""
  pairs = zip(ours, theirs, strict=True)
  return statistics.median(a / b for a, b in pairs)


def geometric_mean(ratios: list[float]) -> float:
  """exp of the mean of the logarithms."""
  return math.exp(statistics.mean(map(math.log, ratios)))


def device() -> str:
  """Names what the numbers were taken on."""
  kind = jax.devices()[0].device_kind
  cores = len(jax.devices())
  return f'{kind} x{cores}, {platform.machine()}, jax {jax.__version__}'
