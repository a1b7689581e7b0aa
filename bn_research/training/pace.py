"""How many steps a run takes in one call of the devices."""

# A chunk of steps cannot be stopped, so SIGTERM waits for this time at most.
_SECONDS = 0.5
_FIRST = 10


class Pace:
  """Chooses the lengths of chunks of steps, by the rate of the last chunk.

  The runs of a pack share a pace, and get the same length from the same step.
  The length of a chunk does not change a bit of the result.
  """

  def __init__(self) -> None:
    """Starts with a short chunk, because the rate is unknown."""
    self._steps = _FIRST
    self._from: dict[int, int] = {}

  def steps(self, start: int) -> int:
    """Returns the length of the chunk that begins after `start` steps."""
    return self._from.setdefault(start, self._steps)

  def took(self, steps: int, seconds: float) -> None:
    """Notes the time of a chunk."""
    self._steps = int(steps / max(seconds, 1e-6) * _SECONDS) + 1
