"""One run: from a config to the files of a workdir."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from bn_research import comparison, disk, errors, locking, workdir
from bn_research.training import (
  checkpoints,
  configuration,
  copies,
  feeding,
  processes,
  progress,
  record,
  recorder,
  stopping,
)
from bn_research.training import mesh as mesh_lib
from bn_research.training import (
  pace as pace_lib,
)
from bn_research.training.programs import Programs

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


class Run:
  """A run in progress, from the newest checkpoint to the end.

  Attributes:
    step: Steps completed.
  """

  def __init__(
    self,
    config: dict[str, Any],
    directory: disk.PathLike,
    programs: Programs,
    written: Mapping[str, Any] | None = None,
    pace: pace_lib.Pace | None = None,
    shared: disk.PathLike | None = None,
  ):
    """Restores the newest checkpoint, or starts at step 0.

    Args:
      config: The resolved config.
      directory: The workdir, or the folder of a process that is not the first.
      programs: What the run computes.
      written: The content of `config.json`, which checkpoints keep; None for a
        run without the file.
      pace: The lengths of chunks; None for a pace of this run alone.
      shared: The workdir, whose checkpoints all processes write; None for
        `directory`.
    """
    self._num_steps: int = config['num_steps']
    self._directory = directory
    self._programs = programs
    self._progress = progress.Progress(self._num_steps)
    self._checkpoints = checkpoints.Checkpoints(
      directory if shared is None else shared,
      config['checkpoint_seconds'],
      config['num_devices'],
      self._progress.say,
      written,
      directory,
    )
    began = workdir.read_status(directory).step
    self._pace = pace or pace_lib.Pace()
    restored = self._checkpoints.restore(programs.abstract)
    state = None if restored is None else restored.state
    step = -1 if state is None else int(state.step)
    if restored is None and began > 0:
      self._progress.say(
        f'no checkpoint is left of {began:,} steps: the run begins again'
      )
    if restored is not None:
      copies.put_back(directory, restored.files, self._progress.say)
    programs.wait()  # The clock of the recorder must not count compilation.
    lengths = written['lengths'] if written else ()
    self._recorder = recorder.Recorder(
      config, directory, programs, step, lengths
    )
    if state is not None:
      self._progress.say(f'going on from step {step:,}')
    self.step = max(step, 0)
    self._state = programs.init() if state is None else state
    self._is_new = state is None
    self._write_status(workdir.INCOMPLETE, self.step, '')

  def until_end_or(self, stop: stopping.Stop) -> workdir.Status:
    """Trains until the last step, a non-finite loss, or a signal."""
    try:
      if self._is_new:
        self._measure({})
      self._progress.start(self.step)
      while self.step < self._num_steps:
        if processes.any_of(stop.signal is not None):
          break
        self.advance()
        if processes.of_first(self._checkpoints.is_due):
          self._save()
    except recorder.Diverged as end:
      self._recorder.flush()
      return self._write_status(workdir.DIVERGED, end.step, end.reason)
    self._save()
    self._checkpoints.close()
    if self.step < self._num_steps:
      return self._write_status(
        workdir.INCOMPLETE,
        self.step,
        f'stopped by {stop.signal or "a signal of another process"}; the same'
        ' command goes on from here',
      )
    self._progress.say(self._summary())
    return self._write_status(workdir.DONE, self.step, '')

  def close(self) -> None:
    """Closes the files, the progress bar and the checkpoints."""
    self._progress.close()
    self._recorder.close()
    self._checkpoints.close()

  def advance(self) -> None:
    """Takes a chunk of steps, and the measurements that are due after it."""
    chunk = processes.of_first(self._pace.steps(self.step))
    chunk = min(chunk, self._programs.max_steps)
    end = min(self.step + chunk, self._recorder.next_point(self.step))
    start = time.monotonic()
    scalars = self._train(end)
    step, loss = jax.device_get((self._state.step, self._state.loss))
    if not math.isfinite(loss):
      raise recorder.Diverged(int(step), 'the training loss', loss)
    self._pace.took(end - self.step, time.monotonic() - start)
    self.step = end
    self._measure(scalars)
    self._progress.update(end, self._recorder.last)

  def _measure(self, scalars: dict[str, jax.Array]) -> None:
    """Takes the measurements that are due, and restarts sums after a row."""
    self._recorder.measure(self._state, self.step, scalars)
    if self._recorder.has_row(self.step):
      self._state = self._programs.restart_sums(self._state)

  def _train(self, end: int) -> dict[str, jax.Array]:
    """Takes the steps up to `end`.

    Returns:
      The scalars of the last step if a row of metrics is due, else nothing.
    """
    given = self._state, self.step, end
    if not self._recorder.has_row(end):
      self._state = self._programs.train(*given)
      return {}
    self._state, scalars = self._programs.train_to_row(*given)
    return scalars

  def _save(self) -> None:
    # In this order, because a checkpoint keeps all results up to its step.
    self._recorder.flush()
    self._checkpoints.save(self._programs.as_arrays(self._state))
    self._write_status(workdir.INCOMPLETE, self.step, '')

  def _write_status(self, *fields: Any) -> workdir.Status:
    status = workdir.Status(*fields)
    workdir.write_status(self._directory, status)
    return status

  def _summary(self) -> str:
    seconds = self._progress.seconds
    probing = self._recorder.probe_seconds / seconds
    return (
      f'{self._progress.rate(self.step):,.0f} steps/s,'
      f' {probing:.1%} of the time in probes;'
      f' {_accuracies(self._recorder.last)}'
    )


def _accuracies(row: Mapping[str, Any]) -> str:
  names = [name for name in row if name.endswith('_accuracy')]
  return ', '.join(
    f'{name.removesuffix("_accuracy")} accuracy {row[name]:.4f}'
    for name in names
  )
