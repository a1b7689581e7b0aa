"""One run: from a config to the files of a workdir."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from bn_research import comparison, disk, errors, locking, workdir
from bn_research.training import (
  checkpoints,
  configuration,
  feeding,
  processes,
  record,
  stopping,
)
from bn_research.training import mesh as mesh_lib
from bn_research.training import (
  pace as pace_lib,
)
from bn_research.training.programs import Programs
from bn_research.training.run import Run

_DIVERGED = 3


def train(
  config: Mapping[str, Any],
  directory: disk.PathLike,
  data_dir: str | None = None,
) -> workdir.Status:
  """Trains a network, from the newest checkpoint if one exists.

  An interrupted run ends with the same bits as an uninterrupted run: the same
  parameters, metrics (except for `seconds`) and probes. A finished run
  continues if the config has a larger `num_steps`.

  Args:
    config: The config; `experiment.KEYS` lists the keys.
    directory: The workdir. A missing directory is created.
    data_dir: The directory of the datasets; None for the default of TFDS.

  Returns:
    The status at the end of the run, done or diverged. A finished run stays
    unchanged.

  Raises:
    Interrupted: If a signal stopped the run, after the run was saved.
    UserError: If config, data, devices or disk do not allow it.
  """
  disk.check_writable(directory)
  config = configuration.resolve(config)
  # A run that is over needs no data and no compilation.
  status = standing(directory, config)
  if status.is_over:
    return status
  dataset = feeding.open_dataset(
    config['data'], data_dir, config['eval']['splits']
  )
  processes.check_form(config['parallel']['form'])
  mesh = mesh_lib.create(
    config['num_devices'],
    config['batch_size'],
    config['parallel']['model_devices'],
  )
  with jax.set_mesh(mesh), stopping.on_signals() as stop:
    with contextlib.closing(Programs(config, dataset, mesh)) as programs:
      status = go_on(config, directory, dataset, programs, stop)
    if status.status == workdir.INCOMPLETE:
      raise Interrupted(status)
    return status


def standing(
  directory: disk.PathLike, config: Mapping[str, Any]
) -> workdir.Status:
  """Returns the status of a run, while no other process trains the run.

  Args:
    directory: The workdir, which need not exist.
    config: The resolved config.

  Raises:
    UserError: If the workdir is of another config, or if another process trains
      the run.
  """

  def look() -> dict[str, Any]:
    if not disk.is_folder(directory):
      return dataclasses.asdict(workdir.Status())
    with locking.exclusive(directory):
      return dataclasses.asdict(_standing(directory, config))

  return workdir.Status(**processes.from_first(look))


def go_on(
  config: dict[str, Any],
  directory: disk.PathLike,
  dataset: feeding.Dataset,
  programs: Programs,
  stop: stopping.Stop,
  pace: pace_lib.Pace | None = None,
  about: Mapping[str, Any] | None = None,
) -> workdir.Status:
  """Trains a run from the newest checkpoint, with programs that are there.

  Args:
    config: The resolved config.
    directory: The workdir.
    dataset: The dataset of the run.
    programs: What the run computes.
    stop: A request to stop.
    pace: The lengths of chunks; None for a pace of this run alone.
    about: What `config.json` tells about this start besides; None for nothing.

  Returns:
    The status: done, diverged, or incomplete after a signal.

  Raises:
    UserError: If data, devices or disk do not allow it.
  """
  with contextlib.ExitStack() as stack:

    def begin() -> dict[str, Any]:
      stack.enter_context(locking.exclusive(directory))
      # Another process may have trained during the compilation.
      status = _standing(directory, config)
      found = {'status': dataclasses.asdict(status), 'record': None}
      if not status.is_over:
        found['record'] = record.write(directory, config, dataset, about or {})
      return found

    found = processes.from_first(begin)
    if found['record'] is None:
      return workdir.Status(**found['status'])
    folder = stack.enter_context(processes.own_folder(directory))
    with _noting_failure(folder):
      run = Run(config, folder, programs, found['record'], pace, directory)
      with contextlib.closing(run):
        return run.until_end_or(stop)


def _standing(
  directory: disk.PathLike, config: Mapping[str, Any]
) -> workdir.Status:
  """Returns the status of a workdir, which must be unused or of this config."""
  _mend_record(directory)
  comparison.check_same_config(directory, config)
  status = workdir.standing(directory, config)
  if status.is_over and not workdir.has_config(directory):
    raise errors.UserError(
      f'{directory} has the results of a run, and {workdir.CONFIG} is lost;'
      ' choose another --workdir'
    )
  return status


def _mend_record(directory: disk.PathLike) -> None:
  """Restores a damaged or lost `config.json` from the newest checkpoint."""
  if workdir.has_config(directory):
    try:
      workdir.read_record(directory)
      return
    except workdir.Damaged:
      pass
  found = checkpoints.read_record(directory)
  if found is not None:
    record.write_whole(directory, found)
    print(f'{directory}/{workdir.CONFIG} was damaged; it is restored')
  elif workdir.has_config(directory):
    raise errors.UserError(
      f'{directory}/{workdir.CONFIG} is damaged, and there is no checkpoint;'
      ' remove the folder and train again'
    )


def line(directory: disk.PathLike, status: workdir.Status) -> str:
  """Returns the last line that a run prints."""
  reason = f': {status.reason}' if status.reason else ''
  return f'{directory}: {status.status} at step {status.step:,}{reason}'


def exit_status(status: workdir.Status) -> int:
  """Returns the exit status of a run."""
  return _DIVERGED if status.status == workdir.DIVERGED else 0


@contextlib.contextmanager
def _noting_failure(directory: disk.PathLike) -> Iterator[None]:
  """Writes the status `failed` after an error in this package.

  A mistake of the user, and an error of the system such as a full disk, are not
  errors of the run: the same command continues the run later.
  """
  try:
    yield
  except (errors.UserError, OSError):
    raise
  except Exception as error:
    step = workdir.read_status(directory).step
    reason = f'{type(error).__name__}: {error}'.splitlines()[0]
    status = workdir.Status(workdir.FAILED, step, reason)
    workdir.write_status(directory, status)
    raise


class Interrupted(KeyboardInterrupt):
  """A signal stopped a run, and the run was saved.

  The class is a KeyboardInterrupt, to end a program that trains many runs.

  Attributes:
    status: The status of the run.
  """

  def __init__(self, status: workdir.Status):
    super().__init__(status.reason)
    self.status = status
