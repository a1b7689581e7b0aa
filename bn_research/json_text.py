"""JSON that every parser reads, with digests.

The module imports the standard library only.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any


def of(value: Any, **options: Any) -> str:
  """Returns a value as JSON that every parser reads.

  Python writes `Infinity` and `NaN`, which JSON does not have. Here an infinity
  is `1e999`, a number that parsers read as an infinity, and NaN is `null`.

  Args:
    value: A value that `json.dumps` accepts.
    **options: Options of `json.dumps`.
  """
  text = json.dumps(value, **options)
  return _TOKENS.sub(lambda found: _AS_JSON.get(found[0], found[0]), text)


# Strings are tokens too: a string may contain the word NaN.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')
_AS_JSON = {'Infinity': '1e999', '-Infinity': '-1e999', 'NaN': 'null'}


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a JSON object with a digest of the content, under `sha256`."""
  return {**value, 'sha256': _digest(value)}


def check_seal(value: Mapping[str, Any]) -> None:
  """Checks a JSON object that was read against its digest.

  An object without a digest is accepted: a person may have written the file.

  Raises:
    ValueError: If the digest differs.
  """
  content = dict(value)
  expected = content.pop('sha256', None)
  if expected is not None and expected != _digest(content):
    raise ValueError('the digest of the file differs')


def _digest(value: Any) -> str:
  text = of(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
