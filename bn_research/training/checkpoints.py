"""Checkpoints of one run: when they are saved, and how damage is noticed."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from bn_research import comparison, disk, errors, workdir
from bn_research.training import contents, copies, orbax, processes, shelves
from bn_research.training.state import TrainState

_KEPT = 2


class Checkpoints:
  """Saves the state from time to time, and restores the newest whole one.

  Saving copies the state off the devices, and writes in the background. Every
  checkpoint has a digest of each array and of each file. A checkpoint that
  cannot be read, or has another digest, is damaged.
  """

  def __init__(
    self,
    directory: disk.PathLike,
    seconds: float,
    num_devices: int,
    say: Callable[[str], None],
    record: Mapping[str, Any] | None = None,
    files: disk.PathLike | None = None,
  ):
    """Reads and writes nothing yet.

    Args:
      directory: The workdir of the run.
      seconds: The least time from one checkpoint to the next, in seconds.
      num_devices: The number of devices of the run. Checkpoints store the
        number, because on another number of devices a continuation differs by
        rounding errors.
      say: A function that prints a line.
      record: The content of `config.json`, of which every checkpoint keeps a
        copy; None for a run without the file.
      files: The folder of the files that checkpoints keep; None for
        `directory`.
    """
    self._workdir = directory
    self._files = directory if files is None else files
    self._record = record
    self._shelf = shelves.create(directory, _KEPT)
    self._seconds = seconds
    self._num_devices = num_devices
    self._say = say
    self._open_manager: Any = None
    self._last_save = time.monotonic()
    self._last_step = -1

  def restore(self, abstract: TrainState) -> contents.Restored | None:
    """Restores the newest whole checkpoint, and moves damaged ones aside.

    Args:
      abstract: The shapes, dtypes and shardings of the state.

    Returns:
      The checkpoint, or None if no whole checkpoint exists.

    Raises:
      UserError: If the checkpoints are of another model.
    """
    for step in self._shelf.steps():
      try:
        self._shelf.fetch(step)
        self._manager.reload()
        restored = contents.read(
          self._manager, step, abstract, self._shelf.path(step).parent
        )
      except errors.UserError:
        raise
      # A damaged file makes Orbax raise errors of many types.
      except Exception as error:
        orbax.check_system(self._shelf.path(step), error)
        aside = self._move_aside(step)
        self._say(
          f'checkpoint {step} is damaged ({type(error).__name__}); it is kept'
          f' as {aside}'
        )
        continue
      self._check_same_run(restored.record)
      self._tell_devices(restored.num_devices)
      self._last_step = step
      return restored
    return None

  @property
  def is_due(self) -> bool:
    """Whether the last checkpoint is old enough for the next."""
    return time.monotonic() - self._last_save >= self._seconds

  def save(self, state: TrainState) -> None:
    """Saves the state, which may be donated as soon as this function returns.

    The files of the workdir must be on the disk.
    """
    step = int(state.step)
    if step == self._last_step:
      return  # Orbax refuses a step that exists.
    files = copies.read(self._files)
    run = contents.describe_run(state, files, self._num_devices, self._record)
    arrays: dict[str, Any] = {'state': state}
    if files:  # Orbax cannot save an empty pytree.
      arrays['files'] = copies.as_arrays(files)
    self._shelf.finish()
    folder = self._shelf.folder
    with orbax.writing(folder):
      orbax.check_space(folder.parent, arrays)
      orbax.save(self._manager, step, arrays, run)
      manager = self._manager
      self._shelf.publish(step, lambda: orbax.wait(manager))
    self._last_save = time.monotonic()
    self._last_step = step

  def close(self) -> None:
    """Waits until all saved checkpoints are on the disk, or in the bucket."""
    manager, self._open_manager = self._open_manager, None
    with contextlib.closing(self._shelf), orbax.writing(self._shelf.folder):
      try:
        self._shelf.finish()
      finally:
        if manager is not None:
          orbax.close(manager)

  def _check_same_run(self, there: Mapping[str, Any] | None) -> None:
    """Raises a UserError if a checkpoint is of a run with another config."""
    if there is None or self._record is None:
      return
    found = comparison.differences(there['config'], self._record['config'])
    found.pop('num_steps', None)  # A run may be extended.
    if found:
      raise errors.UserError(
        f'{self._workdir}/{workdir.CHECKPOINTS} holds checkpoints of another'
        f' run ({"; ".join(found.values())}); choose another --workdir'
      )

  @property
  def _manager(self) -> Any:
    if self._open_manager is None:
      self._open_manager = orbax.open_manager(
        self._shelf.folder, max_to_keep=_KEPT, cleanup_tmp_directories=True
      )
    return self._open_manager

  def _tell_devices(self, there: int) -> None:
    if there != self._num_devices:
      self._say(
        f'saved on {there} devices, going on with {self._num_devices}: the same'
        ' curve, but for rounding'
      )

  def _move_aside(self, step: int) -> str:
    # Orbax refuses, in silence, to save a step below an existing step.
    name = f'damaged-{step}-{time.time_ns()}'
    aside = processes.from_first(lambda: str(self._shelf.set_aside(step, name)))
    self._manager.reload()
    return aside


def read_newest(directory: disk.PathLike, abstract: TrainState) -> TrainState:
  """Reads the newest checkpoint, and changes no file.

  Args:
    directory: The workdir of the run.
    abstract: The shapes, dtypes and shardings of the state.

  Raises:
    UserError: If the run has no checkpoint, or if the newest checkpoint is
      damaged or of another model.
  """
  with shelves.reading(directory) as shelf:
    steps = shelf.steps()
    if not steps:
      raise _no_checkpoint(directory)
    try:
      shelf.fetch(steps[0])
      with orbax.open_manager(shelf.folder, read_only=True) as manager:
        there = shelf.path(steps[0]).parent
        return contents.read(manager, steps[0], abstract, there).state
    except errors.UserError:
      raise
    except Exception as error:
      raise errors.UserError(
        f'{shelf.path(steps[0])} is damaged ({type(error).__name__}); remove'
        f' {directory}/{workdir.STATUS}, and the command that trained the run'
        ' computes it again from the checkpoint before'
      ) from error


def _no_checkpoint(directory: disk.PathLike) -> errors.UserError:
  folder = f'{directory}/{workdir.CHECKPOINTS}'
  if workdir.read_status(directory).is_over:
    return errors.UserError(
      f'{folder} has no checkpoint any more; remove {directory}/'
      f'{workdir.STATUS}, and the command that trained the run trains again'
    )
  return errors.UserError(f'{folder} has no checkpoint yet; train first')


def read_record(directory: disk.PathLike) -> dict[str, Any] | None:
  """Returns the content of `config.json` that the newest checkpoint keeps.

  Args:
    directory: The workdir of the run.

  Returns:
    The content, or None if no checkpoint can be read.
  """
  with shelves.reading(directory) as shelf:
    for step in shelf.steps():
      try:
        shelf.fetch(step)
        with orbax.open_manager(shelf.folder, read_only=True) as manager:
          found = contents.read_run(manager, step).get('record')
      except errors.UserError:
        raise
      # A damaged file makes Orbax raise errors of many types.
      except Exception:
        continue
      if found is not None:
        return found
  return None
