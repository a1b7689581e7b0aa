import contextlib
import functools
import gzip
import http.server
import json
import pathlib
import threading
import time

import numpy as np
import pytest

from bn_research import data, errors
from bn_research.data import __main__ as command
from bn_research.data import mnist, originals, prepare


@contextlib.contextmanager
def _served(folder):
  """Serves a folder on a port of this machine; yields its URL."""

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      del args

  handler = functools.partial(Handler, directory=str(folder))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


def _write_files(folder):
  folder.mkdir()
  for names in mnist.FILES.values():
    for name in names:
      (folder / name).write_bytes(name.encode())


def test_download(tmp_path):
  _write_files(tmp_path / 'raw')
  (tmp_path / 'copy').mkdir()
  with _served(tmp_path / 'raw') as url:
    originals.download(url, mnist.Mnist.FORMS[0], tmp_path / 'copy')
  assert originals.found(mnist.Mnist.FORMS, tmp_path / 'copy')
  for path in (tmp_path / 'raw').iterdir():
    assert (tmp_path / 'copy' / path.name).read_bytes() == path.read_bytes()


def _write_idx(folder, images, labels):
  """Writes 30 examples as train and 10 as test, in the format of MNIST."""
  folder.mkdir()
  parts = {'train': slice(30), 't10k': slice(30, 40)}
  for name, part in parts.items():
    n = len(labels[part]).to_bytes(4)
    header = b'\x00\x00\x08\x03' + n + (b'\x00\x00\x00\x1c' * 2)
    with gzip.open(folder / f'{name}-images-idx3-ubyte.gz', 'wb') as file:
      file.write(header + images[part].tobytes())
    with gzip.open(folder / f'{name}-labels-idx1-ubyte.gz', 'wb') as file:
      file.write(b'\x00\x00\x08\x01' + n + labels[part].tobytes())


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist'])
def test_downloaded_and_prepared(name, tmp_path, monkeypatch):
  from tensorflow_datasets.core.download import checksums

  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 28, 28, 1), np.uint8)
  labels = rng.integers(0, 10, 40).astype(np.uint8)
  _write_idx(tmp_path / 'raw', images, labels)
  writer = {'mnist': mnist.Mnist, 'fashion_mnist': mnist.FashionMnist}[name]
  with _served(tmp_path / 'raw') as url:
    monkeypatch.setattr(writer, 'URL', url)
    sums = {
      url + path.name: checksums.compute_url_info(path)
      for path in (tmp_path / 'raw').iterdir()
    }
    monkeypatch.setattr(writer, 'url_infos', sums)
    prepare.prepare(name, str(tmp_path / 'data'))
  dataset = data.load({'name': name}, str(tmp_path / 'data'))
  for split, part in (
    (dataset.train, slice(30)),
    (dataset.test, slice(30, 40)),
  ):
    expected = {
      image.tobytes(): label
      for image, label in zip(images[part], labels[part], strict=True)
    }
    found = {
      image.tobytes(): label for image, label in zip(*split, strict=True)
    }
    assert found == expected


def test_no_network(tmp_path, monkeypatch):
  with _served(tmp_path) as url:
    pass  # nobody listens there any more
  monkeypatch.setattr(mnist.Mnist, 'URL', url)
  begin = time.perf_counter()
  with pytest.raises(
    errors.UserError, match=r'cannot download .*--from=FOLDER'
  ):
    prepare.prepare('mnist', str(tmp_path / 'data'))
  assert time.perf_counter() - begin < 5


def test_a_server_without_the_files(tmp_path):
  with (
    _served(tmp_path) as url,
    pytest.raises(errors.UserError, match=r'cannot download .*404'),
  ):
    originals.download(url, mnist.Mnist.FORMS[0], tmp_path)


def test_files_that_are_missing(tmp_path):
  _write_files(tmp_path / 'raw')
  (tmp_path / 'raw/t10k-labels-idx1-ubyte.gz').unlink()
  with pytest.raises(
    errors.UserError, match=r'^no t10k-labels-idx1-ubyte\.gz in'
  ):
    prepare.prepare('mnist', str(tmp_path / 'data'), str(tmp_path / 'raw'))


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist'])
def test_files_that_are_others(name, tmp_path):
  _write_files(tmp_path / 'raw')
  with pytest.raises(errors.UserError, match='wrong checksum; fetch') as caught:
    prepare.prepare(name, str(tmp_path / 'data'), str(tmp_path / 'raw'))
  assert '\n' not in str(caught.value)
  assert list(tmp_path.rglob('dataset_info.json')) == []


def test_what_only_tfds_prepares(tmp_path):
  with pytest.raises(errors.UserError, match=r'TensorFlow.*tfds build kmnist'):
    prepare.prepare('kmnist', str(tmp_path))


def test_half_written_is_told_and_left_alone(tmp_path):
  (tmp_path / 'mnist/3.0.1').mkdir(parents=True)
  with pytest.raises(errors.UserError, match='half written; delete'):
    prepare.prepare('mnist', str(tmp_path), str(tmp_path))
  assert (tmp_path / 'mnist/3.0.1').exists()


def _run(monkeypatch, *arguments):
  monkeypatch.setattr('sys.argv', ['data', *arguments])
  return command.main()


def test_an_interrupted_command_is_silent(monkeypatch, capsys):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(prepare, 'prepare', interrupt)
  assert _run(monkeypatch, 'mnist') == 130
  assert capsys.readouterr() == ('', '')


def test_command(tmp_path, monkeypatch, capsys):
  expected = 'digits 1.0.0 (train 1260, validation 179, test 358) in'
  for _ in range(2):  # the second time finds it there
    assert _run(monkeypatch, 'digits', f'--data_dir={tmp_path}') == 0
    assert capsys.readouterr().out.startswith(expected)


@pytest.mark.parametrize(
  ('arguments', 'match'),
  [
    ([], 'name'),
    (['mnist', '--form=x'], '--form=x'),
    (['mnits'], "did you mean 'mnist'"),
    (['mnist', '--from=/nowhere'], 'in /nowhere'),
    (['mnist', '--from=~/nowhere'], f'in {pathlib.Path.home()}/nowhere'),
    (['digits', '--from=/nowhere'], 'leave out --from'),
  ],
)
def test_command_told_wrong(arguments, match, tmp_path, monkeypatch, capsys):
  if arguments:
    arguments = [*arguments, f'--data_dir={tmp_path}']
  assert _run(monkeypatch, *arguments) == 2
  out, err = capsys.readouterr()
  assert out == ''
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert match in err


@pytest.mark.slow
def test_mnist_equals_the_official_preparation(raw_mnist, real_mnist, tmp_path):
  prepare.prepare('mnist', str(tmp_path), str(raw_mnist))
  ours = data.load({'name': 'mnist'}, str(tmp_path))
  official = data.load({'name': 'mnist'}, real_mnist)
  for mine, theirs in (ours.train, official.train), (ours.test, official.test):
    np.testing.assert_array_equal(mine.images, theirs.images)
    np.testing.assert_array_equal(mine.labels, theirs.labels)
  assert len(ours.train.labels) == 60_000
  assert len(ours.test.labels) == 10_000
  _assert_same_description(tmp_path, pathlib.Path(real_mnist))


def _assert_same_description(ours, theirs):
  mine, official = (
    json.loads((folder / 'mnist/3.0.1/dataset_info.json').read_text())
    for folder in (ours, theirs)
  )
  for info in mine, official:
    del info['moduleName']
    for split in info['splits']:
      del split['numBytes']  # of PNG files, which several encoders write
  assert mine == official
  features = [
    (folder / 'mnist/3.0.1/features.json').read_text()
    for folder in (ours, theirs)
  ]
  assert features[0] == features[1]
