"""Checkpoints in a bucket: one object each, whole or not at all."""

import errno
import os
import tarfile
import threading

import pytest

from bn_research import disk, errors
from bn_research.training import rows, shelves


@pytest.fixture
def shelf(bucket):
  shelf = shelves.InBucket(f'{bucket}/run', 2)
  yield shelf
  shelf.close()


def save(shelf, step, content=b'state'):
  """Writes a checkpoint as Orbax would."""
  folder = shelf.folder / str(step) / 'state'
  folder.mkdir(parents=True)
  (folder / 'array').write_bytes(content)
  shelf.publish(step, lambda: None)
  shelf.finish()


def test_a_checkpoint_comes_back_in_another_process(bucket, shelf):
  assert shelf.steps() == []
  save(shelf, 9, b'nine')
  save(shelf, 10, b'ten')
  other = shelves.InBucket(f'{bucket}/run', 2)
  assert other.steps() == [10, 9]
  other.fetch(9)
  assert (other.folder / '9' / 'state' / 'array').read_bytes() == b'nine'
  other.close()
  assert not other.folder.exists()


def test_the_newest_are_kept(shelf):
  for step in (1, 2, 3):
    save(shelf, step)
  assert shelf.steps() == [3, 2]


def test_a_checkpoint_appears_after_orbax_has_written_it(shelf):
  written = threading.Event()
  (shelf.folder / '1').mkdir()
  shelf.publish(1, written.wait)
  assert shelf.steps() == []
  written.set()
  shelf.finish()
  assert shelf.steps() == [1]


def test_an_error_of_the_thread_is_raised(shelf):
  def fail():
    raise errors.UserError('no space')

  shelf.publish(1, fail)
  with pytest.raises(errors.UserError, match='no space'):
    shelf.finish()
  assert shelf.steps() == []


def test_a_damaged_checkpoint_is_set_aside(bucket, shelf):
  save(shelf, 1)
  path = shelf.path(1)
  disk.write_bytes(path, disk.read_bytes(path)[:700])
  with pytest.raises(Exception, match=r'data|header|truncated'):
    shelf.fetch(1)
  assert str(shelf.set_aside(1, 'damaged-1')).endswith('damaged-1.tar')
  assert shelf.steps() == []
  assert disk.names(f'{bucket}/run/checkpoints', '*') == ['damaged-1.tar']


def test_a_full_disk_is_no_damage(s3, monkeypatch):
  def fail(*args, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  shelf = shelves.InBucket(f'{s3}/run', 2)
  save(shelf, 1)
  with monkeypatch.context() as patch:
    patch.setattr(tarfile.TarFile, 'extractall', fail)
    with pytest.raises(errors.UserError, match='free some space'):
      shelf.fetch(1)
    patch.setattr(tarfile.TarFile, 'add', fail)
    shelf.publish(2, lambda: None)
    with pytest.raises(errors.UserError, match='free some space'):
      shelf.finish()
  assert shelf.steps() == [1]
  shelf.close()


def test_rows_wait_for_an_interval_and_are_whole_lines(s3, monkeypatch):
  path = disk.path(s3, 'run', 'metrics.jsonl')
  file = rows.open_file(path, b'{"step": 0}\n')
  file.append(b'{"step": 1}\n')
  assert not disk.exists(path)
  monkeypatch.setattr(rows, 'SECONDS', 0.0)
  file.tick()
  assert disk.read_bytes(path) == b'{"step": 0}\n{"step": 1}\n'
  # Without a new row, nothing is written.
  disk.remove(path)
  file.tick()
  assert not disk.exists(path)
  file.flush(b'{"step": 0}\n{"step": 1}\n')
  assert disk.read_bytes(path) == b'{"step": 0}\n{"step": 1}\n'
