"""Files are whole, and what a disk refuses is one line."""

import errno
import json
import os

import pytest

from bn_research import disk, errors


@pytest.mark.parametrize(
  ('number', 'fix'),
  [
    (errno.ENOSPC, 'free some space'),
    (errno.EDQUOT, 'quota'),
    (errno.EROFS, 'writable --workdir'),
    (errno.EACCES, 'writable --workdir'),
  ],
)
def test_a_disk_that_cannot_be_written_is_one_line(
  tmp_path, monkeypatch, number, fix
):
  path = tmp_path / 'a.json'
  disk.write_json(path, 3)

  def fail(descriptor):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(errors.UserError, match=fix) as caught:
    disk.write_json(path, 4)
  assert str(path) in str(caught.value)
  assert '\n' not in str(caught.value)
  # What was there is there still, and nothing else.
  assert json.loads(path.read_text()) == 3
  assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_way_is_one_line(tmp_path):
  (tmp_path / 'run').write_text('')
  with pytest.raises(errors.UserError, match='another --workdir'):
    disk.write_json(tmp_path / 'run' / 'a.json', {})


def test_other_errors_keep_their_name(tmp_path):
  with pytest.raises(OSError, match='here'), disk.writing(tmp_path):
    raise OSError(errno.EIO, 'here')


def test_json_is_for_people(tmp_path):
  disk.write_json(tmp_path / 'a.json', {'b': [1]})
  text = (tmp_path / 'a.json').read_text()
  assert json.loads(text) == {'b': [1]}
  assert '\n  "b"' in text


@pytest.mark.parametrize('path', ['a' * 300, 'loop/run', 'file/run'])
def test_a_path_that_cannot_be_is_one_line(path, tmp_path):
  (tmp_path / 'loop').symlink_to('loop')
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match=r'choose a.* --workdir'):
    disk.write_json(tmp_path / path / 'a.json', {})
