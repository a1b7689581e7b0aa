"""Orbax with the errors of a disk in one line, and without noise.

Orbax is imported by the functions that need it: the import would lengthen every
start.
"""

import contextlib
import errno
import functools
import logging
import os
import pathlib
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np

from bn_research import disk, errors
from bn_research.training import keys

_SPARE_BYTES = 1 << 20  # Orbax writes metadata beside the arrays.


def open_manager(directory: pathlib.Path, **options: Any) -> Any:
  """Opens a checkpoint manager of Orbax.

  Args:
    directory: The directory of the checkpoints.
    **options: Fields of `CheckpointManagerOptions`.
  """
  from orbax import checkpoint as ocp

  _silence_threads()
  return ocp.CheckpointManager(
    directory, options=ocp.CheckpointManagerOptions(**options)
  )


def save(manager: Any, step: int, arrays: dict[str, Any], json: Any) -> None:
  """Saves pytrees of arrays, and a JSON value under the name `run`.

  Args:
    manager: The manager.
    step: The step of the checkpoint.
    arrays: Pytrees of arrays, by name.
    json: A value that `json.dumps` accepts.
  """
  from orbax import checkpoint as ocp

  items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
  args = ocp.args.Composite(run=ocp.args.JsonSave(json), **items)
  if all(map(_is_on_host, jax.tree.leaves(arrays))):
    _save_later(manager, step, args)
    return
  with _one_at_a_time:
    manager.save(step, args=args)


# Orbax numbers the saves of a process, and mixes up two saves at a time. The
# runs of a pack each have a manager in one process, and their arrays are on the
# host: a single thread saves one run after another, while all runs train.
_one_at_a_time = threading.RLock()
_thread = futures.ThreadPoolExecutor(1)
_pending: dict[int, futures.Future[None]] = {}


def _is_on_host(leaf: Any) -> bool:
  """Returns whether no program can write over an array; NumPy has no keys."""
  return isinstance(leaf, np.ndarray) or keys.is_key(leaf)


def _save_later(manager: Any, step: int, args: Any) -> None:
  def save_now() -> None:
    with _one_at_a_time:
      manager.save(step, args=args)
      manager.wait_until_finished()

  _finish(manager)
  _pending[id(manager)] = _thread.submit(save_now)


def _finish(manager: Any) -> None:
  """Waits for a save in the thread, and raises the error of this save."""
  if (pending := _pending.pop(id(manager), None)) is not None:
    pending.result()


def wait(manager: Any) -> None:
  """Waits until all checkpoints of a manager are on the disk."""
  _finish(manager)
  with _one_at_a_time:
    manager.wait_until_finished()


def close(manager: Any) -> None:
  """Waits as `wait` does, and ends the use of a manager."""
  wait(manager)
  with _one_at_a_time:
    manager.close()


def read_json(manager: Any, step: int) -> Any:
  """Reads the JSON value of a checkpoint."""
  from orbax import checkpoint as ocp

  args = ocp.args.Composite(run=ocp.args.JsonRestore())
  with _one_at_a_time:
    return manager.restore(step, args=args)['run']


def read_arrays(manager: Any, step: int, name: str, *abstract: Any) -> Any:
  """Reads a pytree of arrays of a checkpoint.

  Args:
    manager: The manager.
    step: The step of the checkpoint.
    name: The name of the pytree.
    *abstract: The pytree with shapes, dtypes and shardings. Without this
      argument, the arrays are as they were saved.
  """
  from orbax import checkpoint as ocp

  args = ocp.args.Composite(**{name: ocp.args.StandardRestore(*abstract)})
  with _one_at_a_time:
    return manager.restore(step, args=args)[name]


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Extends `disk.writing` to errors of the disk that TensorStore reports."""
  with disk.writing(path):
    try:
      yield
    except ValueError as error:
      number = _number_of(error)
      if number is None:
        raise
      raise OSError(number, 'TensorStore') from error


def _number_of(error: Exception) -> int | None:
  """Returns the number of an error of the system; None for other errors."""
  # TensorStore raises ValueError, with the number of the error in the text.
  found = re.search(r"os_error_code='(\d+)'", str(error))
  return int(found[1]) if found else getattr(error, 'errno', None)


_OF_THE_SYSTEM = {
  *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE),
  *(errno.ENOMEM, errno.EIO, errno.ESTALE),
}


def check_system(path: pathlib.PurePath, error: Exception) -> None:
  """Raises a UserError for a failure that says nothing about the file.

  Args:
    path: The checkpoint.
    error: The error of an attempt to read the checkpoint.

  Raises:
    UserError: If the user may not read the file, or if the system had no
      memory, no file handle or no disk.
  """
  is_memory = isinstance(error, MemoryError)
  code = errno.ENOMEM if is_memory else _number_of(error)
  if code in _OF_THE_SYSTEM:
    raise errors.UserError(
      f'{path} cannot be read: {os.strerror(code)}; mend that and run the same'
      ' command again'
    ) from error


def check_space(directory: pathlib.Path, arrays: Any) -> None:
  """Raises the error of a full disk before Orbax meets the error in a thread.

  Args:
    directory: A directory on the disk.
    arrays: A pytree of arrays, which is to be written.
  """
  needed = _SPARE_BYTES + sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
  if shutil.disk_usage(directory).free < needed:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@functools.cache
def _silence_threads() -> None:
  """Stops the printing of errors that the threads of Orbax also raise here."""
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  logging.getLogger('absl').addFilter(
    lambda record: 'orbax' not in pathlib.Path(record.pathname).parts
  )
  report = sys.unraisablehook

  def report_others(unraisable: Any) -> None:
    # After an array has failed, each array that was still on the way reports an
    # error of its own, from a coroutine of Orbax.
    code = getattr(unraisable.object, 'cr_code', None)
    is_of_orbax = code is not None and 'orbax' in code.co_filename
    is_late = 'Event loop is closed' in str(unraisable.exc_value)
    if not is_of_orbax and not is_late:
      report(unraisable)

  sys.unraisablehook = report_others
