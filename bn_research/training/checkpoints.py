"""Checkpoints of one run, by Orbax."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from bn_research import errors, workdir
from bn_research.training.state import TrainState

_KEPT = 2


class Checkpoints:
  """Saves the state now and then, and restores the newest that is whole.

  Saving copies the state off the devices and writes it in the background.
  Orbax is imported when it is first needed: it would lengthen every start.
  """

  def __init__(
    self,
    directory: workdir.PathLike,
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
        return self._read(step, 'state', abstract)
      except (ValueError, LookupError, OSError, TypeError) as error:
        reason = (str(error).splitlines() or [''])[0][:60]
        self._say(
          f'checkpoint {step} is damaged ({type(error).__name__}: {reason});'
          ' moved aside'
        )
        self._move_aside(step)
    return None

  @property
  def is_due(self) -> bool:
    """Whether the last checkpoint is old enough for the next."""
    return time.monotonic() - self._last_save >= self._seconds

  def save(self, state: TrainState) -> None:
    """Saves the state, which may be donated as soon as this returns."""
    from orbax import checkpoint as ocp

    run = {'num_devices': self._num_devices, 'arrays': _describe(state)}
    with workdir.writing(self._directory):
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
      with workdir.writing(self._directory):
        self._open_manager.wait_until_finished()
        self._open_manager.close()
      self._open_manager = None

  @property
  def _manager(self) -> Any:
    if self._open_manager is None:
      from orbax import checkpoint as ocp

      options = ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT, enable_async_checkpointing=True
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
    if run['arrays'] != _describe(abstract):
      raise errors.UserError(
        f'{self._directory} holds checkpoints of another model; choose another'
        ' --workdir'
      )
    if run['num_devices'] != self._num_devices:
      self._say(
        f'saved on {run["num_devices"]} devices, going on with'
        f' {self._num_devices}: the same curve, but for rounding'
      )

  def _move_aside(self, step: int) -> None:
    # Orbax refuses, in silence, to save a step that is not above all others.
    path = self._directory / str(step)
    with workdir.writing(path):
      path.rename(self._directory / f'damaged-{step}-{time.time_ns()}')
    self._manager.reload()


def _describe(state: TrainState) -> dict[str, str]:
  """Returns dtype and shape of every array of a state, by its path."""
  return {
    jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
