"""Shows the progress of a run: a bar on a terminal, otherwise plain lines."""

import sys
import time
from collections.abc import Mapping
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
  """Shows the step, the rate, the remaining time and the last measurement."""

  def __init__(self, num_steps: int):
    """Creates the display, and shows nothing yet.

    Args:
      num_steps: Number of steps of the run.
    """
    self._num_steps = num_steps
    self._first = 0
    self._start = self._last_line = time.monotonic()
    self._bar: Any = None

  def start(self, step: int) -> None:
    """Starts the clock at `step`, and on a terminal shows the bar."""
    self._first = step
    self._start = self._last_line = time.monotonic()
    if sys.stdout.isatty():
      self._bar = _bar(self._num_steps)

  def update(self, step: int, row: Mapping[str, Any]) -> None:
    """Shows the progress after `step` steps.

    Args:
      step: Number of completed steps.
      row: The last row of metrics.
    """
    if self._bar is not None:
      self._bar.update(
        self._bar.task_ids[0],
        completed=step,
        text=f'{self.rate(step):,.0f}/s  {_measured(row)}',
      )
    elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
      self._last_line = time.monotonic()
      left = (self._num_steps - step) / self.rate(step)
      self.say(
        f'step {step:,} of {self._num_steps:,}  {self.rate(step):,.0f} steps/s'
        f'  {left:,.0f} s left  {_measured(row)}'
      )

  def rate(self, step: int) -> float:
    """Returns the number of steps per second since the start."""
    # At least 1 step, because `update` divides by the rate.
    return max(step - self._first, 1) / self.seconds

  @property
  def seconds(self) -> float:
    """The number of seconds since the start, above 0 because `rate` divides."""
    return max(time.monotonic() - self._start, 1e-9)

  def say(self, line: str) -> None:
    """Prints a line; if a bar is shown, above the bar."""
    if self._bar is not None:
      # By default rich reads a word in brackets as markup.
      self._bar.console.print(line, markup=False, highlight=False)
    else:
      print(line, flush=True)

  def close(self) -> None:
    """Stops the bar."""
    if self._bar is not None:
      self._bar.stop()


def _measured(row: Mapping[str, Any]) -> str:
  loss = [f'loss {row["train_loss"]:.4f}'] if 'train_loss' in row else []
  # Only a single accuracy is shown: the first split in the config is the most
  # important.
  accuracies = [row[key] for key in row if key.endswith('_accuracy')][:1]
  return '  '.join([*loss, *(f'accuracy {value:.4f}' for value in accuracies)])


def _bar(num_steps: int) -> Any:
  from rich import progress

  bar = progress.Progress(
    progress.MofNCompleteColumn(),
    progress.BarColumn(bar_width=16),  # The whole line fits into 80 columns.
    progress.TimeRemainingColumn(),
    progress.TextColumn('{task.fields[text]}'),
  )
  bar.add_task('', total=num_steps, text='')
  bar.start()
  return bar
