"""Threads that make calls together."""

import threading

import pytest

from bn_research.training.packing import meeting


def meet(plans, together):
  """Makes the calls of each plan in a thread, and returns the results."""
  there = meeting.Meeting(range(len(plans)), together)
  results = [[] for _ in plans]

  def work(place):
    try:
      for what, argument in plans[place]:
        results[place].append(there.call(place, what, argument))
    except ValueError as error:
      results[place].append(error)
    finally:
      there.leave(place)

  threads = [
    threading.Thread(target=work, args=(k,), daemon=True)
    for k in range(len(plans))
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(20)
    assert not thread.is_alive()
  return results


def doubling(calls):
  def together(what, given):
    calls.append((what, dict(given)))
    return {place: (what, 2 * argument) for place, argument in given.items()}

  return together


def test_equal_calls_are_one_call():
  calls = []
  plans = [[('step', 1), ('row', 2)], [('step', 3), ('row', 4)]]
  assert meet(plans, doubling(calls)) == [
    [('step', 2), ('row', 4)],
    [('step', 6), ('row', 8)],
  ]
  assert calls == [('step', {0: 1, 1: 3}), ('row', {0: 2, 1: 4})]


def test_who_is_behind_catches_up():
  calls = []
  late = [('init', 0), ('step', 1), ('step', 2)]
  meet([[('step', 5)], late, [('step', 7)]], doubling(calls))
  # The call of most places comes first, and ended places hold up nobody.
  assert calls == [
    ('step', {0: 5, 2: 7}),
    ('init', {1: 0}),
    ('step', {1: 1}),
    ('step', {1: 2}),
  ]


def test_an_error_of_a_call_reaches_its_threads_alone():
  def together(what, given):
    if what == 'bad':
      raise ValueError('no room')
    return given

  results = meet([[('bad', 1)], [('good', 2)], [('bad', 3)]], together)
  assert results[1] == [2]
  for place in (0, 2):
    (error,) = results[place]
    with pytest.raises(ValueError, match='no room'):
      raise error
