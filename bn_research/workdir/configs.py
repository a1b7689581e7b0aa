"""Reads `config.json`: the config, the dataset and the starts of a run."""

import json
from typing import Any

from bn_research import disk, dotted, errors, json_text, older
from bn_research.workdir import files

FORMAT = 2
"""The format of `config.json`. Format 1 had no number, and a single start."""


def has_config(workdir: disk.PathLike) -> bool:
  """Returns whether a run has started in this directory.

  Raises:
    UserError: If no directory can have this path.
  """
  # For an impossible path, for example with a long name, `exists` raises an
  # OSError.
  with disk.writing(workdir):
    return disk.exists(disk.path(workdir, files.CONFIG))


def read_record(workdir: disk.PathLike) -> dict[str, Any]:
  """Reads `config.json`: the config, the dataset and the starts of a run.

  Returns:
    A dict with `format`, `config`, `dataset`, `lengths` and `starts`: for each
    start of the run `time`, `versions`, `revision`, `devices` and `command`. A
    file from an older version may have fewer keys.

  Raises:
    UserError: If `config.json` is missing, damaged, or of a later format.
  """
  path = disk.path(workdir, files.CONFIG)
  try:
    record = json.loads(disk.read_bytes(path))
    # Valid JSON may have a different form: the config must be a dict.
    record['config'].items()
    json_text.check_seal(record)
    record.pop('sha256', None)
  except OSError as error:
    raise errors.UserError(
      f'{path}: {error.strerror}; is this the workdir of a run?'
    ) from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise files.Damaged(
      f'{path} is damaged; the command that trains restores it'
    ) from error
  if record.get('format', 1) not in range(1, FORMAT + 1):
    raise errors.UserError(
      f'{path} has the format {record["format"]}, and this version knows'
      f' formats up to {FORMAT}; update, or choose another --workdir'
    )
  record['config'] = older.completed(dotted.with_names(record['config']))
  return record


def read_config(workdir: disk.PathLike) -> dict[str, Any]:
  """Reads the resolved config of a run as nested dicts.

  Raises:
    UserError: If `config.json` is missing, damaged, or of a later format.
  """
  return read_record(workdir)['config']
