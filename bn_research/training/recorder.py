"""Evaluates and probes a run at the steps of the config, and writes results."""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bn_research import disk, errors, probes, workdir
from bn_research.training import configuration, metrics, schedule
from bn_research.training.programs import Programs
from bn_research.training.state import TrainState


class Diverged(Exception):
  """A training loss, or an evaluation loss, is infinite or NaN.

  Attributes:
    step: The step of the loss.
    reason: The name and the value of the loss, in a single line.
  """

  def __init__(self, step: int, name: str, loss: float):
    super().__init__(f'{name} is {loss} at step {step}')
    self.step = step
    self.reason = str(self)


class Recorder:
  """Evaluates and probes a run at the steps of the config.

  Attributes:
    last: The last row of metrics.
    probe_seconds: The time of all probes in this process, in seconds, without
      the first use of each probe, which waits for the compiler.
  """

  def __init__(
    self,
    config: Mapping[str, Any],
    directory: disk.PathLike,
    programs: Programs,
    step: int,
    lengths: Sequence[int] = (),
  ):
    """Continues the files of a run after `step`.

    Args:
      config: The resolved config.
      directory: The workdir.
      programs: The compiled programs of the run.
      step: The step of the checkpoint; -1 at the start of a run.
      lengths: The earlier lengths, if the run is extended.
    """
    self._programs = programs
    num_steps = config['num_steps']
    self._eval_points = schedule.measured(num_steps, config['eval'], lengths)
    self._probe_points = {
      key: schedule.measured(num_steps, section, lengths)
      for key, section in configuration.probe_sections(config).items()
    }
    self._points = functools.reduce(
      np.union1d, self._probe_points.values(), self._eval_points
    )
    self._check_rows(directory, step)
    self._metrics = metrics.Metrics(directory, step, config)
    self._probe_logs = {
      key: metrics.ProbeLog(directory, key, probes.constants(probe), step)
      for key, probe in programs.probes.items()
    }
    self.last = self._metrics.rows[-1] if self._metrics.rows else {}
    self._start = time.monotonic() - self.last.get('seconds', 0.0)
    self.probe_seconds = 0.0
    self._used: set[str] = set()

  def _check_rows(self, directory: disk.PathLike, step: int) -> None:
    """Checks that no row from before the checkpoint is lost.

    A lost row would not be measured again, and the file would be rewritten
    without the rows that follow the damage.
    """
    there = {row['step'] for row in workdir.read_metrics(directory)}
    due = self._eval_points[self._eval_points <= step]
    lost = [int(point) for point in due if point not in there]
    if lost:
      raise errors.UserError(
        f'{directory}/{workdir.METRICS} cannot be read from step {lost[0]} on,'
        f' and the checkpoint is of step {step}; restore the file, or remove'
        ' the folder and train again'
      )

  def next_point(self, step: int) -> int:
    """Returns the first step after `step` with a row or a probe."""
    return int(self._points[np.searchsorted(self._points, step, 'right')])

  def has_row(self, step: int) -> bool:
    """Returns whether a row of metrics is due at a step."""
    return step in self._eval_points

  def measure(
    self, state: TrainState, step: int, scalars: Mapping[str, jax.Array]
  ) -> None:
    """Takes the measurements that are due at `step`.

    Args:
      state: The state after `step` steps.
      step: The number of steps.
      scalars: The norms of the last step, from `Programs.train_to_row`.

    Raises:
      Diverged: If the loss on the test split is not finite.
    """
    self._metrics.tick()
    for key, points in self._probe_points.items():
      if step in points:
        self._probe(key, state, step)
    if self.has_row(step):
      self._append_row(state, step, scalars)

  def flush(self) -> None:
    """Waits until all results are on the disk; call before a checkpoint."""
    self._metrics.flush()
    for log in self._probe_logs.values():
      log.flush()

  def close(self) -> None:
    """Closes the files."""
    self._metrics.close()

  def _probe(self, key: str, state: TrainState, step: int) -> None:
    start = time.monotonic()
    arrays = self._programs.probe(key, state)
    self._probe_logs[key].append(step, arrays)
    self._metrics.show(step, key, arrays)
    # The first use of a probe waits for the compiler.
    if key in self._used:
      self.probe_seconds += time.monotonic() - start
    self._used.add(key)

  def _append_row(
    self, state: TrainState, step: int, scalars: Mapping[str, jax.Array]
  ) -> None:
    results = self._programs.evaluate(state)
    for split, result in results.items():
      if not math.isfinite(result['loss']):
        raise Diverged(step, f'the {split} loss', result['loss'])
    row: dict[str, Any] = {'step': step}
    if step:
      since = self._eval_points[np.searchsorted(self._eval_points, step) - 1]
      sums = {'train_loss': state.loss_sum, **state.sums}
      means = {k: float(total) / int(step - since) for k, total in sums.items()}
      # A sum is NaN if an older checkpoint lacks the sum: see `checkpoints`.
      row |= {k: mean for k, mean in means.items() if not math.isnan(mean)}
    row |= {name: float(value) for name, value in scalars.items()}
    for split, result in results.items():
      # The name `train_loss` is taken by the mean over the training steps.
      name = 'train_eval' if split == 'train' else split
      row |= {f'{name}_{key}': value for key, value in result.items()}
    row['seconds'] = round(time.monotonic() - self._start, 3)
    self._metrics.append(row)
    self.last = row
