"""A run in progress: chunks of steps, measurements and checkpoints."""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from bn_research import disk, workdir
from bn_research.training import (
  checkpoints,
  copies,
  processes,
  progress,
  recorder,
  stopping,
)
from bn_research.training import (
  pace as pace_lib,
)
from bn_research.training.programs import Programs


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
