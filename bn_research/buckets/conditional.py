"""Objects that are written only if nobody else has written in between.

Both kinds of buckets decide this on the server: S3 by the entity tag of the old
object, Google Cloud Storage by its generation.
"""

import datetime
import email.utils
import json
import os
from typing import Any, NamedTuple

from bn_research import disk
from bn_research.buckets import connecting


class Version(NamedTuple):
  """A version of an object.

  Attributes:
    content: The content.
    tag: What names the version: an entity tag, or a generation.
    age: The seconds since the version was written, by the clock of the server,
      which gives whole seconds.
  """

  content: bytes
  tag: str
  age: float


def read(path: disk.PathLike) -> Version | None:
  """Returns the version of an object; None if the object does not exist.

  Raises:
    UserError: If the bucket refuses.
  """
  get = _read_s3 if _is_s3(path) else _read_gcs
  try:
    with connecting.told(path):
      return get(connecting.filesystem(path), *_split(path))
  except FileNotFoundError:
    return None


def write(path: disk.PathLike, content: bytes, tag: str | None) -> None:
  """Writes an object if its version has a tag; otherwise changes nothing.

  The caller reads the object afterwards, and sees whether the write was done.
  An answer would not suffice: if an answer is lost, the libraries write again,
  and the second write fails.

  Args:
    path: The path.
    content: The content.
    tag: The tag of the version to replace; None to create the object.

  Raises:
    UserError: If the bucket refuses.
  """
  put = _write_s3 if _is_s3(path) else _write_gcs
  try:
    with connecting.told(path):
      try:
        put(connecting.filesystem(path), *_split(path), content, tag)
      except Exception as error:
        if not connecting.precondition_failed(error):
          raise
  except FileNotFoundError:
    pass  # The version to replace was removed.


def _is_s3(path: disk.PathLike) -> bool:
  return os.fspath(path).startswith('s3:')


def _split(path: disk.PathLike) -> tuple[str, str]:
  bucket, _, key = os.fspath(path).partition('://')[2].partition('/')
  return bucket, key


def _read_s3(fs: Any, bucket: str, key: str) -> Version:
  import fsspec.asyn

  answer = fs.call_s3('get_object', Bucket=bucket, Key=key)
  content = fsspec.asyn.sync(fs.loop, answer['Body'].read)
  now = answer['ResponseMetadata']['HTTPHeaders']['date']
  return Version(content, answer['ETag'], _age(answer['LastModified'], now))


def _write_s3(
  fs: Any, bucket: str, key: str, content: bytes, tag: str | None
) -> None:
  condition = {'IfNoneMatch': '*'} if tag is None else {'IfMatch': tag}
  fs.call_s3('put_object', Bucket=bucket, Key=key, Body=content, **condition)


def _read_gcs(fs: Any, bucket: str, key: str) -> Version:
  headers, text = fs.call('GET', 'b/{}/o/{}', bucket, key)
  about = json.loads(text)
  tag = about['generation']
  # The content of this generation: a newer object makes the answer 404.
  _, content = fs.call('GET', fs.url(f'{bucket}/{key}', generation=tag))
  written = datetime.datetime.fromisoformat(about['updated'])
  return Version(content, tag, _age(written, headers['Date']))


def _write_gcs(
  fs: Any, bucket: str, key: str, content: bytes, tag: str | None
) -> None:
  fs.call(
    'POST',
    f'{fs._location}/upload/storage/v1/b/{bucket}/o',
    uploadType='media',
    name=key,
    ifGenerationMatch=tag or '0',
    data=content,
    headers={'Content-Type': 'application/octet-stream'},
  )


def _age(written: datetime.datetime, now: str) -> float:
  """Returns the seconds between two times of a server.

  Args:
    written: The time of the write.
    now: The time of the answer, as in the header `Date` of HTTP.
  """
  then = email.utils.parsedate_to_datetime(now)
  return (then - written).total_seconds()
