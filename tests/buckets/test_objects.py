"""The files of a workdir as objects, on real servers of both kinds."""

import time

import pytest

from bn_research import disk, workdir
from bn_research.buckets import connecting


def test_an_object_comes_back(bucket):
  path = disk.path(bucket, 'runs', 'a=1,b', 'x.json')
  assert not disk.exists(path)
  disk.write_json(path, {'b': [1]})
  assert disk.exists(path)
  assert disk.read_bytes(path) == b'{\n  "b": [\n    1\n  ]\n}\n'
  assert abs(time.time() - disk.modified(path)) < 5
  disk.remove(path)
  assert not disk.exists(path)
  disk.remove(path)
  with pytest.raises(FileNotFoundError, match='No such file'):
    disk.read_bytes(path)


def test_names_are_those_of_now(bucket):
  folder = disk.path(bucket, 'runs')
  assert disk.names(folder, '*') == []
  for name in ('b.npz', 'a.npz', 'a.txt', 'below/c.npz'):
    disk.write_bytes(folder / name, b'1')
    assert name.startswith('below') or name in disk.names(folder, '*')
  assert disk.names(folder, '*.npz') == ['a.npz', 'b.npz']
  other = connecting.filesystem_of.__wrapped__(bucket.partition(':')[0])
  other.pipe_file(f'{bucket}/runs/of_another_process', b'1')
  assert 'of_another_process' in disk.names(folder, '*')
  disk.remove(folder / 'a.npz')
  assert disk.names(folder, '*.npz') == ['b.npz']


def test_a_slash_at_the_end_changes_nothing(bucket):
  disk.write_bytes(f'{bucket}/runs//x', b'1')
  assert disk.read_bytes(disk.path(f'{bucket}/runs/', 'x')) == b'1'
  assert disk.names(f'{bucket}/runs/', '*') == ['x']


def test_runs_are_the_outermost_folders(bucket):
  for name in ('b', 'a', 'a/report', 'ab'):
    disk.write_bytes(disk.path(bucket, 'runs', name, 'config.json'), b'1')
  disk.write_bytes(disk.path(bucket, 'runs', 'c', 'other'), b'1')
  found = workdir.find(f'{bucket}/runs')
  expected = [f'{bucket}/runs/{name}' for name in ('a', 'ab', 'b')]
  assert [str(path) for path in found] == expected
  assert workdir.find(f'{bucket}/none') == []


def test_an_object_is_written_whole_or_not_at_all(bucket):
  path = disk.path(bucket, 'x')
  disk.write_bytes(path, b'old')

  def fail(file):
    file.write(b'n')
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    disk.write_atomically(path, fail)
  assert disk.read_bytes(path) == b'old'
  assert disk.names(bucket, '*') == ['x']


def test_a_bucket_that_can_be_written_is_left_as_it_was(bucket):
  disk.check_writable(f'{bucket}/runs')
  assert disk.names(f'{bucket}/runs', '*') == []
