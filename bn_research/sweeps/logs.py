"""Where the output of the runs of a sweep is.

A process writes its output to a file of a disk. The output of a run in a bucket
is therefore in the cache folder of the user, under the name of the bucket.
"""

import os
import pathlib

from bn_research import disk

NAME = 'log.txt'


def path(directory: disk.PathLike) -> pathlib.Path:
  """Returns the file of the output of a run.

  Args:
    directory: The workdir of the run.
  """
  if not disk.is_bucket(directory):
    return pathlib.Path(directory, NAME)
  protocol, _, rest = os.fspath(disk.path(directory)).partition('://')
  return disk.user_cache() / 'logs' / protocol / rest / NAME


def tell_folder(directory: disk.PathLike) -> None:
  """Prints where the output of the runs is, for a sweep in a bucket.

  Args:
    directory: The workdir of the sweep.
  """
  if disk.is_bucket(directory):
    print(f'the output of each run is in {path(directory).parent}/RUN/{NAME}')
