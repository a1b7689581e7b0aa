"""Several processes of one run: what the first does, and what all agree on.

All processes compute the same numbers on the mesh of all devices. The first
process alone writes the workdir; the others have a folder of their own, which
nobody reads. Clocks, signals and disks differ between processes: decisions that
depend on these are made together.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from bn_research import disk, errors

# A process that does not answer for this time is lost.
_HEARTBEAT_SECONDS = 30
_START_SECONDS = 120


def join(
  coordinator: str, num_processes: int | None, process_id: int | None
) -> None:
  """Joins the processes of a run, before JAX finds the devices.

  Args:
    coordinator: `host:port` of the first process; `'auto'` for the environment
      of a cluster, such as Slurm or a TPU pod.
    num_processes: The number of processes; None with `'auto'`.
    process_id: The number of this process, from 0; None with `'auto'`.

  Raises:
    UserError: If the address is wrong, or if the processes do not come.
  """
  try:
    jax.distributed.initialize(
      None if coordinator == 'auto' else coordinator,
      num_processes,
      process_id,
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    line = str(error).strip().partition('\n')[0]
    raise errors.UserError(
      f'--coordinator={coordinator}: the processes of the run did not find each'
      f' other: {line}'
    ) from error


def check_form(form: str) -> None:
  """Checks that several processes can use a form of program.

  Args:
    form: `config.parallel.form`.

  Raises:
    UserError: If the form is for a single process.
  """
  if form == 'pmap' and jax.process_count() > 1:
    raise errors.UserError(
      'config.parallel.form=pmap is for one process; choose jit or shard_map'
    )


def is_first() -> bool:
  """Returns whether this process writes the workdir."""
  return jax.process_index() == 0


def any_of(flag: bool) -> bool:
  """Returns whether the flag is set in any process."""
  return flag if jax.process_count() == 1 else bool(_gathered(flag).any())


def of_first(number: int) -> int:
  """Returns the number that the first process has."""
  return number if jax.process_count() == 1 else int(_gathered(number)[0])


def from_first(function: Callable[[], Any]) -> Any:
  """Returns the result of a function that the first process alone calls.

  Args:
    function: A function of no arguments, whose result JSON can hold.

  Raises:
    UserError: In all processes, if the function raises a UserError.
  """
  if jax.process_count() == 1:
    return function()
  answer: dict[str, Any] = {}
  if is_first():
    try:
      answer = {'result': function()}
    except errors.UserError as error:
      answer = {'error': str(error), 'exit_status': error.exit_status}
  answer = _broadcast(answer)
  if 'error' in answer:
    raised = errors.UserError(answer['error'])
    raised.exit_status = answer['exit_status']
    raise raised
  return answer['result']


@contextlib.contextmanager
def own_folder(directory: disk.PathLike) -> Iterator[disk.PathLike]:
  """Gives the folder that this process writes, until the `with` block ends.

  Args:
    directory: The workdir, which is the folder of the first process.

  Raises:
    UserError: If several processes do not share a disk.
  """
  if jax.process_count() > 1 and disk.is_bucket(directory):
    raise errors.UserError(
      f'{directory}: the processes of a run need a folder that all of them see;'
      ' choose a --workdir on a shared disk'
    )
  if is_first():
    yield directory
    return
  with tempfile.TemporaryDirectory() as folder:
    yield folder


def _gathered(number: int) -> np.ndarray:
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(np.int32(number))


def _broadcast(value: Any) -> Any:
  """Returns the value of the first process, as JSON text holds the value."""
  from jax.experimental import multihost_utils

  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  length = of_first(len(text))
  text = np.resize(text, length) if is_first() else np.zeros(length, np.uint8)
  found = multihost_utils.broadcast_one_to_all(text)
  return json.loads(np.asarray(found, np.uint8).tobytes())
