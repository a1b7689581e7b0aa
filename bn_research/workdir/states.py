"""The status of a run: what `status.json` says."""

import dataclasses
from collections.abc import Mapping

INCOMPLETE = 'incomplete'
DONE = 'done'
DIVERGED = 'diverged'
FAILED = 'failed'


@dataclasses.dataclass(frozen=True)
class Status:
  """The status of a run.

  Attributes:
    status: `INCOMPLETE`, `DONE`, `DIVERGED` or `FAILED`.
    step: Number of completed training steps at the time of the status.
    reason: The reason for the status, in a single line; empty if the status
      needs no reason.
    metrics: The SHA-256 digest of `metrics.jsonl` for a run that is over;
      otherwise empty.
    probes: The SHA-256 digests of the files of the probes, by key, for a run
      that is over; otherwise empty.
  """

  status: str = INCOMPLETE
  step: int = 0
  reason: str = ''
  metrics: str = dataclasses.field(default='', compare=False)
  probes: Mapping[str, str] = dataclasses.field(
    default_factory=dict, compare=False, hash=False
  )

  @property
  def is_over(self) -> bool:
    """Whether the run completed all steps, or diverged."""
    return self.status in (DONE, DIVERGED)
