"""Servers of buckets on this machine, and clients that connect to them."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

from bn_research.buckets import connecting

# Intervals for tests, in a process of their own.
QUICK = """
import sys
from bn_research.buckets import leases
from bn_research.training import rows
leases.RENEW_SECONDS, leases.EXPIRE_SECONDS, rows.SECONDS = 0.2, 3.0, 0.0
sys.argv[0] = 'train'
from bn_research import cli, train
cli.run(train.main)
"""


class Killer:
  """An application of WSGI that kills a client in the middle of a write.

  Attributes:
    pid: The process to kill at the next write of an object; None for nobody.
    suffix: The end of the name of this object.
    killed: The name of the object, after the kill.
  """

  def __init__(self, app):
    self._app = app
    self.pid, self.suffix, self.killed = None, '', ''

  def __call__(self, environ, start_response):
    path = environ['PATH_INFO']
    is_write = environ['REQUEST_METHOD'] == 'PUT'
    if is_write and self.pid and path.endswith(self.suffix):
      # Half of the object arrives, and the store never sees the request.
      length = int(environ.get('CONTENT_LENGTH') or 2)
      environ['wsgi.input'].read(length // 2)
      os.kill(self.pid, signal.SIGKILL)
      self.pid, self.killed = None, path
      start_response('400 Bad Request', [])
      return [b'']
    return self._app(environ, start_response)


@contextlib.contextmanager
def s3() -> Iterator[tuple[str, Killer]]:
  """Serves S3 on a free port, and gives the address and the application.

  The server takes one request at a time. A conditional write is thus one act,
  as on S3; two threads of moto could both find the old object.
  """
  from moto.moto_server import werkzeug_app
  from werkzeug import serving

  logging.getLogger('werkzeug').setLevel(logging.ERROR)
  killer = Killer(
    werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app)
  )
  server = serving.make_server(
    '127.0.0.1',
    0,
    killer,
    threaded=False,
    request_handler=werkzeug_app.MotoRequestHandler,
  )
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.port}', killer
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def gcs(module) -> Iterator[str]:
  """Serves Google Cloud Storage on a free port, and gives the address.

  Args:
    module: The module `gcp_storage_emulator.server`.
  """
  logging.getLogger('gcp_storage_emulator').setLevel(logging.CRITICAL)
  server = module.create_server('127.0.0.1', 0, in_memory=True)
  server.start()
  try:
    yield f'http://127.0.0.1:{server._api._httpd.server_port}'
  finally:
    server.stop()


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
  """Sets environment variables, for clients that connect anew."""
  before = dict(os.environ)
  os.environ.update(variables)
  connecting.filesystem_of.cache_clear()
  try:
    yield
  finally:
    connecting.filesystem_of.cache_clear()
    os.environ.clear()
    os.environ.update(before)


def train(path: str, *flags: str) -> subprocess.Popen:
  """Starts the training of the digits in a process, with short intervals."""
  command = [
    *(sys.executable, '-c', QUICK, '--config=configs/ioffe2015_fig1.py:quick'),
    *(f'--workdir={path}', *flags),
  ]
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )
