"""Threads that meet at calls, and make each call together."""

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

# A function of what is called, and of the arguments by place. The function
# returns the results by place.
Together = Callable[[Hashable, Mapping[int, Any]], Mapping[int, Any]]


class Meeting:
  """Makes a call of many threads at once, as soon as all threads wait.

  Each thread has a place, until the thread leaves. When the threads at all
  places wait in a call, the call that most threads make is made for these
  threads together. In the usual case all threads make the same call. The
  threads of runs that go on from different steps catch up in this way, too.
  """

  def __init__(self, places: Iterable[int], together: Together):
    """Starts with a thread at each place.

    Args:
      places: The places.
      together: The function that makes a call for many places.
    """
    self._together = together
    self._present = set(places)
    self._waiting: dict[int, tuple[Hashable, Any]] = {}
    self._results: dict[int, Any] = {}
    self._errors: dict[int, BaseException] = {}
    self._changed = threading.Condition()

  def call(self, place: int, what: Hashable, argument: Any) -> Any:
    """Makes a call together with the threads at other places.

    Args:
      place: The place of the calling thread.
      what: What is called.
      argument: The argument of the thread.

    Returns:
      The result of the thread.

    Raises:
      Exception: If the call raises an error, which all of its threads get.
    """
    with self._changed:
      self._waiting[place] = what, argument
      while place in self._waiting:
        if self._waiting.keys() == self._present:
          self._make_a_call()
          self._changed.notify_all()
        else:
          self._changed.wait()
      if place in self._errors:
        raise self._errors.pop(place)
      return self._results.pop(place)

  @property
  def present(self) -> set[int]:
    """The places with a thread."""
    return self._present

  def leave(self, place: int) -> None:
    """Leaves the meeting, which goes on without this place."""
    with self._changed:
      self._present.discard(place)
      self._changed.notify_all()

  def _make_a_call(self) -> None:
    # All threads wait, thus nothing else happens while the lock is held.
    calls = [what for what, _ in self._waiting.values()]
    chosen = max(dict.fromkeys(calls), key=calls.count)
    given = {
      place: argument
      for place, (what, argument) in sorted(self._waiting.items())
      if what == chosen
    }
    try:
      self._results.update(self._together(chosen, given))
    except BaseException as error:
      self._errors.update(dict.fromkeys(given, error))
    for place in given:
      del self._waiting[place]
