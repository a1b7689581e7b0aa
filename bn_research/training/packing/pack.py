"""The programs of many runs, which compute at once."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax

from bn_research.training.packing import meeting
from bn_research.training.packing.program import Program
from bn_research.training.packing.tracing import Tracer


class Pack:
  """The programs of the runs of a pack.

  A pack has places. A run takes a place, and the calls of the run are made
  together with the calls of the runs at the other places. When a run is over,
  the place is free for another run.

  Attributes:
    width: The number of places.
  """

  def __init__(
    self,
    settings: Sequence[Tracer],
    width: int,
    devices: Sequence[jax.Device],
    is_vectorized: bool,
  ):
    """Starts to compile the programs.

    Args:
      settings: The traced programs for each setting of the numbers.
      width: The number of places, a multiple of the number of devices.
      devices: The devices, among which the places are divided.
      is_vectorized: Whether a device computes its places at once; see
        `Program`.

    Raises:
      lifting.Different: If the programs of two settings differ in more than
        numbers.
    """
    self.width = width
    self._settings = list(settings)
    self._setting_of: dict[int, int] = {}
    self._here = threading.local()
    self._meeting = meeting.Meeting(range(width), self._together)
    self._programs = [
      Program(same, width, devices, is_vectorized)
      for same in zip(*(one.programs for one in settings), strict=True)
    ]
    # XLA compiles without the lock of the Python interpreter (GIL).
    pool = futures.ThreadPoolExecutor()
    self._compiled = [
      pool.submit(program.compile, program.lower())
      for program in self._programs
    ]
    pool.shutdown(wait=False)
    for setting in settings:
      setting.call, setting.ready = self._call, self._wait

  @contextlib.contextmanager
  def member(self, place: int, setting: Tracer) -> Iterator[None]:
    """Gives a place to the run of the calling thread, in a `with` block."""
    self._here.place = place
    self._setting_of[place] = self._settings.index(setting)
    yield

  def leave(self, place: int) -> None:
    """Leaves a place empty from now on."""
    self._meeting.leave(place)

  def _wait(self) -> None:
    for one in self._compiled:
      one.result()

  def _call(self, index: int, args: tuple[Any, ...]) -> Any:
    leaves = jax.tree.leaves(args)
    return self._meeting.call(self._here.place, index, leaves)

  def _together(
    self, index: Any, given: Mapping[int, list[Any]]
  ) -> dict[int, Any]:
    is_last_use = given.keys() == self._meeting.present
    return self._programs[index](given, self._setting_of, is_last_use)
