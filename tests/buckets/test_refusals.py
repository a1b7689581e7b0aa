"""What a bucket refuses is one line, told before any run starts."""

import http.server
import json
import subprocess
import sys
import threading

import pytest

from bn_research import disk, errors
from bn_research.buckets import connecting
from tests.buckets import servers


@pytest.mark.parametrize(
  'path', ['ftp://host/runs', 'az://a/runs', 'file:///a']
)
def test_another_protocol_is_told(path):
  with pytest.raises(errors.UserError, match='gs:// or s3://'):
    disk.check(path)


@pytest.mark.parametrize(
  ('protocol', 'package', 'extra'),
  [('s3', 's3fs', 's3'), ('gs', 'gcsfs', 'gcs')],
)
def test_a_missing_package_is_told(protocol, package, extra, monkeypatch):
  monkeypatch.setitem(sys.modules, package, None)
  connecting.filesystem_of.cache_clear()
  with pytest.raises(errors.UserError, match=package) as caught:
    disk.check(f'{protocol}://bucket/runs')
  assert f'needs {package}, which is not installed' in str(caught.value)
  assert str(caught.value).endswith(f"-e '.[{extra}]'")


@pytest.mark.parametrize('check', [disk.check, disk.check_writable])
def test_a_bucket_that_does_not_exist_is_told(bucket, check):
  with pytest.raises(errors.UserError, match='the bucket does not exist'):
    check(f'{bucket}-other/runs')


def test_a_bucket_that_was_removed_is_told(bucket):
  path = disk.path(f'{bucket}-other', 'x')
  with pytest.raises(errors.UserError, match='the bucket does not exist'):
    disk.write_bytes(path, b'1')


def test_an_address_without_bucket_is_told():
  with pytest.raises(errors.UserError, match='s3://NAME/runs'):
    disk.check('s3://')


@pytest.mark.parametrize('action', ['PutObject', 'DeleteObject'])
def test_a_bucket_without_permission_is_told(s3, action):
  name = s3.removeprefix('s3://')
  statement = {
    'Effect': 'Deny',
    'Principal': '*',
    'Action': f's3:{action}',
    'Resource': f'arn:aws:s3:::{name}/*',
  }
  policy = json.dumps({'Version': '2012-10-17', 'Statement': [statement]})
  connecting.filesystem(s3).call_s3(
    'put_bucket_policy', Bucket=name, Policy=policy
  )
  with pytest.raises(errors.UserError, match='permission denied') as caught:
    disk.check_writable(f'{s3}/runs')
  assert f'{s3}/runs' in str(caught.value)
  assert '\n' not in str(caught.value)


class _Forbids(http.server.BaseHTTPRequestHandler):
  """Answers 403 to every request."""

  def do_GET(self):
    body = b'{"error": {"code": 403, "message": "no access"}}'
    self.send_response(403)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *args):
    pass


def test_a_forbidden_bucket_of_google_is_told():
  pytest.importorskip('gcsfs', reason='the extra gcs is not installed')
  server = http.server.HTTPServer(('127.0.0.1', 0), _Forbids)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  address = f'http://127.0.0.1:{server.server_port}'
  try:
    with (
      servers.environment(STORAGE_EMULATOR_HOST=address),
      pytest.raises(errors.UserError, match='permission denied'),
    ):
      disk.check('gs://bucket/runs')
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


class _Failure(Exception):
  """An error of a library, with the attributes that such errors have."""

  def __init__(self, text, **attributes):
    super().__init__(text)
    self.__dict__.update(attributes)


@pytest.mark.parametrize(
  ('name', 'text', 'attributes', 'line'),
  [
    ('NoCredentialsError', 'none', {}, 'no valid credentials'),
    ('HttpError', 'Anonymous caller', {'code': 401}, 'no valid credentials'),
    ('HttpError', 'stop', {'code': 403}, 'permission denied'),
    ('EndpointConnectionError', 'x', {}, 'does not answer'),
    ('ReadTimeoutError', 'x', {}, 'does not answer'),
    ('Other', 'one\ntwo', {}, 'Other: one; mend that'),
  ],
)
def test_an_error_of_a_library_is_one_line(name, text, attributes, line):
  kind = type(name, (_Failure,), {'__module__': 'botocore.exceptions'})
  with (
    pytest.raises(errors.UserError, match=line) as caught,
    connecting.told('s3://bucket/x'),
  ):
    raise kind(text, **attributes)
  assert '\n' not in str(caught.value)
  assert 's3://bucket/x' in str(caught.value)


def test_a_mistake_of_this_package_keeps_its_name():
  with pytest.raises(TypeError), connecting.told('s3://bucket/x'):
    raise TypeError('ours')


def command(module, workdir, *flags):
  """Calls a command, and returns the exit status and the errors."""
  result = subprocess.run(
    [
      *(sys.executable, '-m', f'bn_research.{module}', *flags),
      *('--config=configs/ioffe2015_fig1.py:quick', f'--workdir={workdir}'),
    ],
    capture_output=True,
    text=True,
  )
  return result.returncode, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize('module', ['train', 'sweep', 'report'])
def test_each_command_tells_before_any_run_starts(s3, module):
  status, text = command(module, f'{s3}-other/runs')
  assert status == 2
  assert text.startswith('error: ')
  assert text.count('\n') == 1
  assert 'the bucket does not exist' in text


@pytest.mark.slow
def test_no_credentials_and_no_server_are_told(s3, monkeypatch):
  with monkeypatch.context() as patch:
    patch.delenv('AWS_ACCESS_KEY_ID')
    patch.delenv('AWS_SECRET_ACCESS_KEY')
    patch.setenv('AWS_SHARED_CREDENTIALS_FILE', '/nonexistent')
    status, text = command('train', f'{s3}/runs')
  assert (status, text.count('\n')) == (2, 1)
  assert 'no valid credentials' in text
  # The port 9 is for a service that nobody runs.
  monkeypatch.setenv('AWS_ENDPOINT_URL_S3', 'http://127.0.0.1:9')
  status, text = command('train', f'{s3}/runs')
  assert (status, text.count('\n')) == (2, 1)
  assert 'the server does not answer' in text
