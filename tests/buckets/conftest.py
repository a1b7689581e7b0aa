"""A new bucket for each test, on servers that run for all tests."""

import uuid

import pytest

from tests.buckets import servers

CREDENTIALS = {
  'AWS_ACCESS_KEY_ID': 'key',
  'AWS_SECRET_ACCESS_KEY': 'secret',
  'AWS_EC2_METADATA_DISABLED': 'true',
}


@pytest.fixture(scope='session')
def s3_server():
  pytest.importorskip('s3fs', reason='the extra s3 is not installed')
  pytest.importorskip('moto', reason='moto serves S3 in the tests')
  with servers.s3() as (address, killer):
    yield address, killer


@pytest.fixture
def s3(s3_server):
  """The path of a new bucket of S3."""
  with servers.environment(AWS_ENDPOINT_URL_S3=s3_server[0], **CREDENTIALS):
    import s3fs

    name = f'bucket-{uuid.uuid4().hex[:12]}'
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(name)
    yield f's3://{name}'


@pytest.fixture(scope='session')
def gcs_server():
  pytest.importorskip('gcsfs', reason='the extra gcs is not installed')
  server = pytest.importorskip(
    'gcp_storage_emulator.server', reason='it serves buckets in the tests'
  )
  with servers.gcs(server) as address:
    yield address


@pytest.fixture
def gcs(gcs_server):
  """The path of a new bucket of Google Cloud Storage."""
  with servers.environment(STORAGE_EMULATOR_HOST=gcs_server):
    from gcsfs import core

    name = f'bucket-{uuid.uuid4().hex[:12]}'
    core.GCSFileSystem(use_listings_cache=False).mkdir(name)
    yield f'gs://{name}'


@pytest.fixture(params=['s3', 'gcs'])
def bucket(request):
  """The path of a new bucket of each kind."""
  return request.getfixturevalue(request.param)
