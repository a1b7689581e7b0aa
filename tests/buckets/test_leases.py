"""Leases: one process writes to a folder, and a lost lease stops it.

The emulator of Google Cloud Storage ignores conditions. Tests of the conditions
are therefore of S3 alone.
"""

import json
import subprocess
import sys
import threading
import time

import pytest

from bn_research import disk, errors, locking
from bn_research.buckets import conditional, leases


@pytest.fixture(autouse=True)
def _believe_nothing(monkeypatch):
  monkeypatch.setattr(leases, 'BELIEVED_SECONDS', 0.0)


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(leases, 'RENEW_SECONDS', 0.05)


def write_lease(directory, **fields):
  """Writes a lease as another process would."""
  value = {'owner': 'other', 'host': 'far', 'pid': 7, 'seconds': 60.0, **fields}
  disk.write_bytes(
    disk.path(directory, leases.NAME), json.dumps(value).encode()
  )


def until(condition):
  """Waits for a condition, for two seconds at most."""
  end = time.monotonic() + 2
  while not condition() and time.monotonic() < end:
    time.sleep(0.02)
  assert condition()


def test_a_lease_is_held_and_given_back(bucket):
  assert not locking.is_held(bucket)
  with locking.exclusive(bucket):
    assert locking.is_held(bucket)
    disk.write_bytes(disk.path(bucket, 'x'), b'1')
  assert not locking.is_held(bucket)
  with locking.exclusive(bucket):
    assert locking.is_held(bucket)


def test_a_live_lease_is_refused(bucket):
  write_lease(bucket)
  assert locking.is_held(bucket)
  with (
    pytest.raises(locking.Busy, match=r'host far, pid 7.* ends in 6[0-3] s'),
    locking.exclusive(bucket),
  ):
    pass
  # The refused process has changed nothing.
  content = disk.read_bytes(disk.path(bucket, leases.NAME))
  assert json.loads(content)['owner'] == 'other'


def test_a_stale_lease_is_taken_over(bucket):
  write_lease(bucket, seconds=-10.0)
  assert not locking.is_held(bucket)
  with locking.exclusive(bucket):
    assert locking.is_held(bucket)


def test_a_damaged_lease_is_taken_over(s3):
  disk.write_bytes(disk.path(s3, leases.NAME), b'[1')
  with locking.exclusive(s3):
    assert locking.is_held(s3)


_WRONG_HOST = """
import sys, time
time.time = lambda: 0.0
from bn_research.buckets import conditional
print(conditional.read(sys.argv[1]).age)
"""


def test_the_age_is_by_the_clock_of_the_server(bucket):
  disk.write_bytes(disk.path(bucket, 'x'), b'1')
  command = [sys.executable, '-c', _WRONG_HOST, f'{bucket}/x']
  result = subprocess.run(command, check=True, capture_output=True, text=True)
  assert -1 <= float(result.stdout) <= 5


@pytest.mark.usefixtures('quick')
def test_each_renewal_is_a_new_version(s3):
  path = disk.path(s3, leases.NAME)
  with locking.exclusive(s3):
    first = conditional.read(path).tag
    # Equal contents would have equal entity tags.
    until(lambda: conditional.read(path).tag != first)
    disk.write_bytes(disk.path(s3, 'x'), b'1')


@pytest.mark.usefixtures('quick')
def test_a_lost_lease_stops_all_writes(s3):
  path = disk.path(s3, 'run', 'x')
  with locking.exclusive(f'{s3}/run'):
    disk.write_bytes(path, b'before')
    write_lease_of_another(f'{s3}/run')
    until(lambda: refused(path))
    with pytest.raises(locking.Busy, match='is lost to another process'):
      disk.remove(path)
    # Other folders are none of its business.
    disk.write_bytes(disk.path(s3, 'run2', 'x'), b'1')
  assert disk.read_bytes(path) == b'before'
  # The lease of the other process is there still.
  content = disk.read_bytes(disk.path(s3, 'run', leases.NAME))
  assert json.loads(content)['owner'] == 'other'


def write_lease_of_another(directory):
  path = disk.path(directory, leases.NAME)
  value = {'owner': 'other', 'seconds': 60.0}
  # A write of the same moment is repeated, as a second process would.
  while json.loads(conditional.read(path).content)['owner'] != 'other':
    tag = conditional.read(path).tag
    conditional.write(path, json.dumps(value).encode(), tag)


def refused(path):
  try:
    disk.write_bytes(path, b'before')
  except locking.Busy as error:
    return error.exit_status == 75
  return False


def no_answer(*args):
  raise errors.UserError('the server does not answer')


@pytest.mark.parametrize('write', [no_answer, lambda *args: None])
def test_a_lease_that_is_not_renewed_ends_by_itself(s3, write, monkeypatch):
  monkeypatch.setattr(leases, 'RENEW_SECONDS', 0.02)
  with locking.exclusive(s3):
    locking.check(disk.path(s3, 'x'))
    monkeypatch.setattr(conditional, 'write', write)
    time.sleep(0.1)
    disk.write_bytes(disk.path(s3, 'x'), b'1')  # There is still time.
    now = leases._now()
    monkeypatch.setattr(leases, '_now', lambda: now + leases.EXPIRE_SECONDS)
    time.sleep(0.1)
    with pytest.raises(locking.Busy, match='did not answer in time'):
      locking.check(disk.path(s3, 'x'))


def test_a_lease_is_read_at_intervals(s3, monkeypatch):
  monkeypatch.setattr(leases, 'BELIEVED_SECONDS', 60.0)
  write_lease(s3)
  assert locking.is_held(s3)
  disk.remove(disk.path(s3, leases.NAME))
  assert locking.is_held(s3)
  now = leases._now()
  monkeypatch.setattr(leases, '_now', lambda: now + 61)
  assert not locking.is_held(s3)


def test_a_lost_answer_to_a_renewal_is_no_loss(s3, monkeypatch):
  read = conditional.read
  answers = iter([False])
  monkeypatch.setattr(leases, 'RENEW_SECONDS', 0.02)
  with locking.exclusive(s3):

    def fail_once(path):
      if next(answers, True):
        return read(path)
      raise errors.UserError('the server does not answer')

    count = json.loads(read(disk.path(s3, leases.NAME)).content)['count']
    monkeypatch.setattr(conditional, 'read', fail_once)
    lease = disk.path(s3, leases.NAME)
    until(lambda: json.loads(read(lease).content)['count'] > count + 3)
    locking.check(disk.path(s3, 'x'))
  assert next(answers, None) is None
  assert not locking.is_held(s3)


@pytest.mark.parametrize('is_stale', [False, True])
def test_one_of_many_wins(s3, is_stale, monkeypatch):
  if is_stale:
    write_lease(s3, seconds=-10.0)
  write = conditional.write
  start = threading.Barrier(6)

  def write_together(*args):
    start.wait()  # All have seen that the lease is free.
    write(*args)

  monkeypatch.setattr(conditional, 'write', write_together)
  won, busy = [], []

  def race():
    try:
      won.append(leases.Lease(s3))
    except locking.Busy as error:
      busy.append(error)

  threads = [threading.Thread(target=race) for _ in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  monkeypatch.setattr(conditional, 'write', write)
  assert (len(won), len(busy)) == (1, 5)
  won[0].check()
  won[0].release()


def test_a_write_needs_the_version_that_was_seen(s3):
  path = disk.path(s3, 'x')
  conditional.write(path, b'1', None)
  conditional.write(path, b'2', None)
  first = conditional.read(path)
  assert first.content == b'1'
  conditional.write(path, b'3', first.tag)
  conditional.write(path, b'4', first.tag)
  assert conditional.read(path).content == b'3'
  conditional.write(disk.path(s3, 'missing'), b'5', first.tag)
  assert conditional.read(disk.path(s3, 'missing')) is None


def test_a_write_whose_answer_was_lost_is_no_defeat(s3, monkeypatch):
  write = conditional.write

  def write_twice(path, content, tag):
    # The libraries write again after a lost answer, and the second is refused.
    write(path, content, tag)
    write(path, content, tag)

  monkeypatch.setattr(conditional, 'write', write_twice)
  with locking.exclusive(s3):
    assert locking.is_held(s3)
