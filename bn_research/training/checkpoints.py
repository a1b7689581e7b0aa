"""Checkpoints of one run: what they hold, and how damage is noticed."""

import pathlib
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bn_research import comparison, disk, errors, workdir
from bn_research.training import copies, digests, orbax
from bn_research.training.state import TrainState

_KEPT = 2


class Restored(NamedTuple):
  """The content of a checkpoint.

  Attributes:
    state: The state of the run.
    files: The files of the run up to the step of the state, by path.
    num_devices: The number of devices of the run that saved the checkpoint.
    record: The content of `config.json` of this run, if the run had the file.
  """

  state: TrainState
  files: copies.Files
  num_devices: int
  record: Mapping[str, Any] | None


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
    """
    self._workdir = directory
    self._record = record
    self._directory = _folder(directory)
    self._seconds = seconds
    self._num_devices = num_devices
    self._say = say
    self._open_manager: Any = None
    self._last_save = time.monotonic()
    self._last_step = -1

  def restore(self, abstract: TrainState) -> Restored | None:
    """Restores the newest whole checkpoint, and moves damaged ones aside.

    Args:
      abstract: The shapes, dtypes and shardings of the state.

    Returns:
      The checkpoint, or None if no whole checkpoint exists.

    Raises:
      UserError: If the checkpoints are of another model.
    """
    for step in _newest_first(self._directory):
      try:
        restored = _read(self._manager, step, abstract)
      except errors.UserError:
        raise
      # A damaged file makes Orbax raise errors of many types.
      except Exception as error:
        orbax.check_system(self._directory / str(step), error)
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
    files = copies.read(self._workdir)
    run = {
      'num_devices': self._num_devices,
      'arrays': _describe(state),
      'array_digests': digests.of_arrays(state),
      'files': copies.digests(files),
      'record': self._record,
    }
    arrays: dict[str, Any] = {'state': state}
    if files:  # Orbax cannot save an empty pytree.
      arrays['files'] = copies.as_arrays(files)
    with orbax.writing(self._directory):
      orbax.check_space(self._directory.parent, arrays)
      orbax.save(self._manager, step, arrays, disk.sealed(run))
    self._last_save = time.monotonic()
    self._last_step = step

  def close(self) -> None:
    """Waits until all saved checkpoints are on the disk."""
    if self._open_manager is not None:
      manager, self._open_manager = self._open_manager, None
      with orbax.writing(self._directory):
        orbax.close(manager)

  def _check_same_run(self, there: Mapping[str, Any] | None) -> None:
    """Raises a UserError if a checkpoint is of a run with another config."""
    if there is None or self._record is None:
      return
    found = comparison.differences(there['config'], self._record['config'])
    found.pop('num_steps', None)  # A run may be extended.
    if found:
      raise errors.UserError(
        f'{self._directory} holds checkpoints of another run'
        f' ({"; ".join(found.values())}); choose another --workdir'
      )

  @property
  def _manager(self) -> Any:
    if self._open_manager is None:
      self._open_manager = orbax.open_manager(
        self._directory, max_to_keep=_KEPT, cleanup_tmp_directories=True
      )
    return self._open_manager

  def _tell_devices(self, there: int) -> None:
    if there != self._num_devices:
      self._say(
        f'saved on {there} devices, going on with {self._num_devices}: the same'
        ' curve, but for rounding'
      )

  def _move_aside(self, step: int) -> pathlib.Path:
    # Orbax refuses, in silence, to save a step below an existing step.
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
    UserError: If the run has no checkpoint, or if the newest checkpoint is
      damaged or of another model.
  """
  folder = _folder(directory)
  steps = _newest_first(folder)
  if not steps:
    if workdir.read_status(directory).is_over:
      raise errors.UserError(
        f'{folder} has no checkpoint any more; remove {directory}/'
        f'{workdir.STATUS}, and the command that trained the run trains again'
      )
    raise errors.UserError(f'{folder} has no checkpoint yet; train first')
  step = steps[0]
  with orbax.open_manager(folder, read_only=True) as manager:
    try:
      return _read(manager, step, abstract).state
    except errors.UserError:
      raise
    except Exception as error:
      raise errors.UserError(
        f'{folder / str(step)} is damaged ({type(error).__name__}); remove'
        f' {directory}/{workdir.STATUS}, and the command that trained the run'
        ' computes it again from the checkpoint before'
      ) from error


def read_record(directory: disk.PathLike) -> dict[str, Any] | None:
  """Returns the content of `config.json` that the newest checkpoint keeps.

  Args:
    directory: The workdir of the run.

  Returns:
    The content, or None if no checkpoint can be read.
  """
  folder = _folder(directory)
  steps = _newest_first(folder)
  if not steps:
    return None  # Without a folder, Orbax cannot open a manager to read.
  with orbax.open_manager(folder, read_only=True) as manager:
    for step in steps:
      try:
        found = _read_run(manager, step).get('record')
      # A damaged file makes Orbax raise errors of many types.
      except Exception:
        continue
      if found is not None:
        return found
  return None


def _folder(directory: disk.PathLike) -> pathlib.Path:
  """Returns the folder of the checkpoints of a run."""
  return pathlib.Path(directory, workdir.CHECKPOINTS).absolute()


def _newest_first(folder: pathlib.Path) -> list[int]:
  """Returns the steps of the checkpoints in a folder, the newest first."""
  if not folder.is_dir():
    return []
  names = (path.name for path in folder.iterdir())
  return sorted(
    (int(name) for name in names if re.fullmatch('[0-9]+', name)), reverse=True
  )


def _read_run(manager: Any, step: int) -> dict[str, Any]:
  """Reads the description of a checkpoint, and checks the digest."""
  run = orbax.read_json(manager, step)
  disk.check_seal(run)
  return run


def _read(manager: Any, step: int, abstract: TrainState) -> Restored:
  """Reads and checks a checkpoint.

  Raises:
    UserError: If the checkpoint is of another model.
    Exception: If the checkpoint is damaged.
  """
  # The digest first: a damaged description would look like another model.
  run = _read_run(manager, step)
  saved = _as_saved(abstract, run['arrays'])
  # Orbax casts another dtype in silence.
  if run['arrays'] != _describe(saved):
    raise errors.UserError(
      f'{manager.directory} holds checkpoints of another model; choose another'
      ' --workdir'
    )
  state = orbax.read_arrays(manager, step, 'state', saved)
  # Older versions wrote no digests, or another kind, and no files.
  found = digests.of_arrays(state)
  if found != run.get('array_digests', found):
    raise ValueError('the digest of an array differs')
  expected = run.get('files', {})
  arrays = orbax.read_arrays(manager, step, 'files') if expected else {}
  files = copies.from_arrays(arrays, expected)
  return Restored(
    _with_sums(state, abstract), files, run['num_devices'], run.get('record')
  )


def _as_saved(abstract: TrainState, arrays: Collection[str]) -> TrainState:
  """Returns a state with the sums that a checkpoint has.

  A checkpoint stays readable after a scalar is added to the rows of metrics.
  """
  scalar = abstract.loss_sum
  found = (re.fullmatch(r"\.sums\['(\w+)'\]", path) for path in arrays)
  return abstract._replace(sums={name[1]: scalar for name in found if name})


def _with_sums(state: TrainState, abstract: TrainState) -> TrainState:
  """Returns a state with all sums; a sum that was not saved is NaN."""
  unknown = jax.device_put(np.float32(np.nan), abstract.loss_sum.sharding)
  sums = {name: state.sums.get(name, unknown) for name in abstract.sums}
  return state._replace(sums=sums)


def _describe(state: TrainState) -> dict[str, str]:
  """Returns dtype and shape of every array of a state, by its path."""
  return {
    jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
