"""Connects to buckets, and tells what a bucket refuses in one line.

The libraries are imported at the first use. They are extras of the project.
"""

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

from bn_research import disk, errors

# Listings must be new: other processes write to the same bucket. The instances
# of fsspec would keep an old environment.
_OPTIONS = {'use_listings_cache': False, 'skip_instance_cache': True}


def filesystem(path: disk.PathLike) -> Any:
  """Returns the file system of fsspec for a path, which keeps no listings.

  Args:
    path: A path in a bucket.

  Raises:
    UserError: If the package for the protocol is not installed.
  """
  return filesystem_of(os.fspath(path).partition(':')[0])


@functools.cache
def filesystem_of(protocol: str) -> Any:
  """Returns the file system for `s3` or `gs`; see `filesystem`."""
  package, extra = {'s3': ('s3fs', 's3'), 'gs': ('gcsfs', 'gcs')}[protocol]
  try:
    if protocol == 's3':
      import s3fs

      return s3fs.S3FileSystem(**_OPTIONS)
    from gcsfs import core

    # gcsfs logs the errors that it raises.
    logging.getLogger('gcsfs').setLevel(logging.CRITICAL)
    return core.GCSFileSystem(**_OPTIONS)
  except ImportError as error:
    raise errors.not_installed(f'{protocol}://', package, extra) from error


@contextlib.contextmanager
def told(path: disk.PathLike) -> Iterator[None]:
  """Turns an error of a bucket into one line for the user.

  Args:
    path: The path in the bucket, for the message.

  Raises:
    FileNotFoundError: If the bucket has no such object.
    UserError: If the bucket does not exist, does not answer, or refuses.
  """
  try:
    yield
  except FileNotFoundError as error:
    if _code(error) != 'NoSuchBucket':
      text = os.strerror(errno.ENOENT)
      raise FileNotFoundError(errno.ENOENT, text, os.fspath(path)) from error
    raise no_bucket(path) from error
  except Exception as error:
    if not _is_of_libraries(error):
      raise
    raise errors.UserError(f'{os.fspath(path)}: {_reason(error)}') from error


def no_bucket(path: disk.PathLike) -> errors.UserError:
  """Returns the error of a bucket that does not exist."""
  return errors.UserError(
    f'{os.fspath(path)}: the bucket does not exist; create it, or choose'
    ' another --workdir'
  )


_LIBRARIES = {'aiohttp', 'botocore', 'aiobotocore', 'google', 'gcsfs', 's3fs'}


def _is_of_libraries(error: Exception) -> bool:
  """Whether an error is of a bucket, and not a mistake of this package."""
  module = type(error).__module__.partition('.')[0]
  # s3fs and gcsfs raise an OSError or a ValueError for an answer with an error.
  return isinstance(error, OSError | ValueError) or module in _LIBRARIES


def _code(error: BaseException) -> str:
  """Returns the code of an error: a word of S3, or the number of HTTP."""
  for one in (error, error.__cause__):
    answer = getattr(one, 'response', None)
    if isinstance(answer, dict):
      return str(answer.get('Error', {}).get('Code', ''))
    if code := getattr(one, 'code', None):
      return str(code)
  return ''


def precondition_failed(error: Exception) -> bool:
  """Returns whether a write was refused because another write came first."""
  # gcsfs raises a FileExistsError. S3 has a second code for two writes at once.
  words = ('PreconditionFailed', 'ConditionalRequestConflict', '412')
  return isinstance(error, FileExistsError) or _code(error) in words


_CREDENTIALS = (
  'there are no valid credentials; set AWS_ACCESS_KEY_ID and'
  ' AWS_SECRET_ACCESS_KEY (s3://), or run gcloud auth application-default login'
  ' (gs://)'
)
_PERMISSION = (
  'permission denied; ask for the permission to list, read, write and delete'
  ' objects there, or choose another --workdir'
)
_ANSWER = (
  'the server does not answer; check the network, and AWS_ENDPOINT_URL_S3 or'
  ' STORAGE_EMULATOR_HOST if the environment has one'
)


def _reason(error: Exception) -> str:
  """Returns what is wrong, and the fix, in one line."""
  name, code, text = type(error).__name__, _code(error), str(error)
  if 'Credentials' in name or name in ('RefreshError', 'TransportError'):
    return _CREDENTIALS
  if code in ('401', 'InvalidAccessKeyId', 'SignatureDoesNotMatch'):
    return _CREDENTIALS
  is_forbidden = isinstance(error, PermissionError) or '403' in code
  if is_forbidden or code == 'AccessDenied' or text.startswith('Forbidden'):
    return _PERMISSION
  connections = (ConnectionError, TimeoutError)
  if isinstance(error, connections) or 'Connect' in name or 'Timeout' in name:
    return _ANSWER
  first = (text.splitlines() or [''])[0]
  return f'{name}: {first}; mend that and run the same command again'
