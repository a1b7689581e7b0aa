"""Checkpoints of one run, by Orbax."""

import contextlib
import errno
import functools
import logging
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np

from bn_research import disk, errors, workdir
from bn_research.training.state import TrainState

_KEPT = 2
_SPARE_BYTES = 1 << 20  # For what Orbax writes beside the arrays.


class Checkpoints:
  """Saves the state now and then, and restores the newest that is whole.

  Saving copies the state off the devices and writes it in the background.
  Orbax is imported when it is first needed: it would lengthen every start.
  """

  def __init__(
    self,
    directory: disk.PathLike,
    seconds: float,
    num_devices: int,
    say: Callable[[str], None],
  ):
    """Reads and writes nothing yet.

    Args:
      directory: The workdir of the run.
      seconds: The least time from one checkpoint to the next.
      num_devices: Number of devices of the run; kept beside the state, because
        on another number the continuation differs by rounding.
      say: Called with one line where something is worth a line.
    """
    self._directory = pathlib.Path(directory, workdir.CHECKPOINTS).absolute()
    self._seconds = seconds
    self._num_devices = num_devices
    self._say = say
    self._open_manager: Any = None
    self._last_save = time.monotonic()

  def restore(self, abstract: TrainState) -> TrainState | None:
    """Restores the newest whole checkpoint; damaged ones are moved aside.

    Args:
      abstract: The shapes, dtypes and shardings of the state.

    Returns:
      The state, or None where there is no whole checkpoint.

    Raises:
      UserError: If the checkpoints are those of another model.
    """
    for step in sorted(self._steps(), reverse=True):
      try:
        run = self._read(step, 'run')
        self._check_run(run, abstract)
        saved = _as_saved(abstract, run['arrays'])
        return _with_sums(self._read(step, 'state', saved), abstract)
      except (ValueError, LookupError, OSError, TypeError) as error:
        aside = self._move_aside(step)
        self._say(
          f'checkpoint {step} is damaged ({type(error).__name__}); it is kept'
          f' as {aside}'
        )
    return None

  @property
  def is_due(self) -> bool:
    """Whether the last checkpoint is old enough for the next."""
    return time.monotonic() - self._last_save >= self._seconds

  def save(self, state: TrainState) -> None:
    """Saves the state, which may be donated as soon as this returns."""
    from orbax import checkpoint as ocp

    run = {'num_devices': self._num_devices, 'arrays': _describe(state)}
    with _writing(self._directory):
      _check_space(self._directory.parent, state)
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)
        ),
      )
    self._last_save = time.monotonic()

  def close(self) -> None:
    """Waits until what was saved is on the disk."""
    if self._open_manager is not None:
      manager, self._open_manager = self._open_manager, None
      with _writing(self._directory):
        manager.wait_until_finished()
        manager.close()

  @property
  def _manager(self) -> Any:
    if self._open_manager is None:
      from orbax import checkpoint as ocp

      _silence_threads()
      options = ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT, cleanup_tmp_directories=True
      )
      self._open_manager = ocp.CheckpointManager(
        self._directory, options=options
      )
    return self._open_manager

  def _steps(self) -> list[int]:
    if not self._directory.is_dir():
      return []
    return [int(p.name) for p in self._directory.iterdir() if p.name.isdigit()]

  def _read(self, step: int, item: str, *abstract: TrainState) -> Any:
    from orbax import checkpoint as ocp

    args = ocp.args.StandardRestore if abstract else ocp.args.JsonRestore
    items = ocp.args.Composite(**{item: args(*abstract)})
    return self._manager.restore(step, args=items)[item]

  def _check_run(self, run: dict[str, Any], abstract: TrainState) -> None:
    # Orbax casts another dtype in silence.
    if run['arrays'] != _describe(_as_saved(abstract, run['arrays'])):
      raise errors.UserError(
        f'{self._directory} holds checkpoints of another model; choose another'
        ' --workdir'
      )
    if run['num_devices'] != self._num_devices:
      self._say(
        f'saved on {run["num_devices"]} devices, going on with'
        f' {self._num_devices}: the same curve, but for rounding'
      )

  def _move_aside(self, step: int) -> pathlib.Path:
    # Orbax refuses, in silence, to save a step that is not above all others.
    path = self._directory / str(step)
    aside = self._directory / f'damaged-{step}-{time.time_ns()}'
    with disk.writing(path):
      path.rename(aside)
    self._manager.reload()
    return aside


def read_newest(directory: disk.PathLike, abstract: TrainState) -> TrainState:
  """Reads the newest checkpoint, and changes no file.

  Args:
    directory: The workdir of the run.
    abstract: The shapes, dtypes and shardings of the state.

  Raises:
    UserError: If there is no checkpoint, or the newest is damaged or of another
      model.
  """
  from orbax import checkpoint as ocp

  _silence_threads()
  folder = pathlib.Path(directory, workdir.CHECKPOINTS).absolute()
  if not any(folder.glob('[0-9]*')):
    raise errors.UserError(f'{folder} has no checkpoint yet; train first')
  options = ocp.CheckpointManagerOptions(read_only=True)
  with ocp.CheckpointManager(folder, options=options) as manager:
    step = manager.latest_step()
    try:
      args = ocp.args.Composite(run=ocp.args.JsonRestore())
      run = manager.restore(step, args=args)['run']
      saved = _as_saved(abstract, run['arrays'])
      args = ocp.args.Composite(state=ocp.args.StandardRestore(saved))
      return _with_sums(manager.restore(step, args=args)['state'], abstract)
    except (ValueError, LookupError, OSError, TypeError) as error:
      raise errors.UserError(
        f'{folder / str(step)} is damaged, or of another model'
        f' ({type(error).__name__}); the command that trains mends it'
      ) from error


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
  """As `disk.writing`, also where the error comes from TensorStore."""
  with disk.writing(path):
    try:
      yield
    except ValueError as error:
      number = re.search(r"os_error_code='(\d+)'", str(error))
      if number is None:
        raise
      raise OSError(int(number[1]), 'TensorStore') from error


def _check_space(directory: pathlib.Path, state: TrainState) -> None:
  """Raises the error of a full disk before Orbax meets it in its threads."""
  needed = _SPARE_BYTES + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  if shutil.disk_usage(directory).free < needed:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@functools.cache
def _silence_threads() -> None:
  """Stops the printing of what the threads of Orbax raise here as well."""
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  logging.getLogger('absl').addFilter(
    lambda record: 'orbax' not in pathlib.Path(record.pathname).parts
  )
  report = sys.unraisablehook

  def report_others(unraisable: Any) -> None:
    # One for each array that was still on its way when another one failed.
    if 'Event loop is closed' not in str(unraisable.exc_value):
      report(unraisable)

  sys.unraisablehook = report_others


def _as_saved(abstract: TrainState, arrays: Collection[str]) -> TrainState:
  """Returns a state with those sums that a checkpoint has.

  A scalar that is added to the rows must not make a checkpoint useless.
  """
  scalar = abstract.loss_sum
  found = (re.fullmatch(r"\.sums\['(\w+)'\]", path) for path in arrays)
  return abstract._replace(sums={name[1]: scalar for name in found if name})


def _with_sums(state: TrainState, abstract: TrainState) -> TrainState:
  """Returns a state with all sums; those that were not saved are NaN."""
  unknown = jax.device_put(np.float32(np.nan), abstract.loss_sum.sharding)
  sums = {name: state.sums.get(name, unknown) for name in abstract.sums}
  return state._replace(sums=sums)


def _describe(state: TrainState) -> dict[str, str]:
  """Returns dtype and shape of every array of a state, by its path."""
  return {
    jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
