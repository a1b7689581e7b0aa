"""Finds the workdirs of runs below a directory."""

import os
import pathlib

from bn_research import disk
from bn_research.workdir import files


def find(directory: disk.PathLike) -> list[pathlib.PurePath]:
  """Returns the outermost folders that have a `config.json`, sorted.

  Args:
    directory: The folder to search, itself included.
  """
  if not disk.is_bucket(directory):
    return _find_on_disk(directory)
  from bn_research.buckets import objects

  found = objects.folders_with(directory, files.CONFIG)
  return [disk.path(folder) for folder in found]


def _find_on_disk(directory: disk.PathLike) -> list[pathlib.PurePath]:
  found: list[pathlib.PurePath] = []
  seen = set[str]()
  for folder, below, names in os.walk(directory, followlinks=True):
    # A link may lead to a folder that was seen, or to a folder above itself.
    real = os.path.realpath(folder)
    if real in seen:
      below.clear()
      continue
    seen.add(real)
    if files.CONFIG in names:
      # With an empty list, `os.walk` does not enter the folders of the run.
      below.clear()
      found.append(pathlib.Path(folder))
  return sorted(found)
