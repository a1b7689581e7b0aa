"""Reads batches ahead by Grain, in threads or in processes."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

from absl import flags

T = TypeVar('T')

# Batches that are ready, beside one batch in the work of each thread.
_READY = 2


def prefetch(
  load: Callable[[int], T],
  start: int,
  stop: int,
  threads: int | None = None,
  workers: int = 0,
) -> Generator[T, None, None]:
  """Yields `load(start)` to `load(stop - 1)` in order, each computed ahead.

  Args:
    load: A function of the number of a batch. A copy goes to each process.
    start: The first number.
    stop: The last number plus 1.
    threads: The number of threads in each process; None for one thread a core.
    workers: The number of processes; 0 for threads of this process.

  Yields:
    The results.
  """
  # The import takes half a second, and only a stream needs Grain.
  import grain

  workers = min(workers, stop - start)
  if threads is None:
    threads = max(1, num_cores() // max(workers, 1))
  dataset = (
    grain.MapDataset.range(start, stop)
    .map(load)
    .to_iter_dataset(grain.ReadOptions(threads, threads + _READY))
  )
  if workers:
    # Grain reads flags of absl, also in a program that has no flags.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(workers, per_worker_buffer_size=_READY),
      worker_init_fn=_begin,
    )
  iterator = iter(dataset)
  try:
    yield from iterator
  finally:
    iterator.close()


def num_cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _begin(index: int, count: int) -> None:
  """Prepares a process that reads batches."""
  del index, count
  # The run ends its processes. After Ctrl-C the run still takes a step or two.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  if parent is not None:
    # A killed run cannot end its processes.
    end = functools.partial(_end_after, parent)
    threading.Thread(target=end, daemon=True).start()


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
  parent.join()
  os._exit(1)
