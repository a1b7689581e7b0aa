"""Where the checkpoints of a run are: in a folder, or in a bucket.

Orbax renames folders, and cannot write to `s3://`. A checkpoint in a bucket is
therefore one object, the archive of the folder that Orbax writes on the disk:
the object appears whole or not at all, and is removed whole.
"""

import concurrent.futures
import contextlib
import pathlib
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator

from bn_research import disk, workdir
from bn_research.buckets import objects


class OnDisk:
  """The folder `checkpoints` of a workdir on a disk.

  Attributes:
    folder: The folder that Orbax reads and writes.
  """

  def __init__(self, directory: disk.PathLike):
    self.folder = pathlib.Path(directory, workdir.CHECKPOINTS).absolute()

  def steps(self) -> list[int]:
    """Returns the steps of the checkpoints, the newest first."""
    if not self.folder.is_dir():
      return []
    names = (path.name for path in self.folder.iterdir())
    return _newest_first(name for name in names if re.fullmatch('[0-9]+', name))

  def path(self, step: int) -> pathlib.PurePath:
    """Returns the path of a checkpoint, for messages."""
    return self.folder / str(step)

  def fetch(self, step: int) -> None:
    """Makes a checkpoint readable in `folder`: nothing to do."""

  def publish(self, step: int, wait: Callable[[], None]) -> None:
    """Makes a saved checkpoint last: nothing to do."""

  def finish(self) -> None:
    """Waits until all checkpoints are published: nothing to do."""

  def set_aside(self, step: int, name: str) -> pathlib.PurePath:
    """Renames a damaged checkpoint, and returns the new path."""
    with disk.writing(self.path(step)):
      return (self.folder / str(step)).rename(self.folder / name)

  def close(self) -> None:
    """Does nothing."""


class InBucket:
  """The objects `checkpoints/STEP.tar`, and a folder of the disk for Orbax.

  Attributes:
    folder: The folder that Orbax reads and writes. A run that is killed leaves
      the folder in the folder of temporary files.
  """

  def __init__(self, directory: disk.PathLike, max_to_keep: int):
    self._bucket = disk.path(directory, workdir.CHECKPOINTS)
    self._max_to_keep = max_to_keep
    self._temporary = tempfile.TemporaryDirectory(prefix='bn_research-')
    self.folder = pathlib.Path(self._temporary.name, workdir.CHECKPOINTS)
    self.folder.mkdir()
    # One thread: checkpoints appear in the order of their steps.
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: concurrent.futures.Future[None] | None = None

  def steps(self) -> list[int]:
    """Returns the steps of the checkpoints, the newest first."""
    names = disk.names(self._bucket, '*.tar')
    found = (re.fullmatch(r'([0-9]+)\.tar', name) for name in names)
    return _newest_first(match[1] for match in found if match)

  def path(self, step: int) -> pathlib.PurePath:
    """Returns the path of a checkpoint."""
    return self._bucket / f'{step}.tar'

  def fetch(self, step: int) -> None:
    """Unpacks a checkpoint into `folder`.

    Raises:
      UserError: If the bucket does not give the object, or if the disk is full.
      Exception: If the object is no archive of a checkpoint.
    """
    with self._archive() as archive:
      objects.download(self.path(step), archive)
      with tarfile.open(archive) as tar:
        tar.extractall(self.folder / str(step), filter='data')

  def publish(self, step: int, wait: Callable[[], None]) -> None:
    """Writes a saved checkpoint to the bucket, in a thread.

    Args:
      step: The step of the checkpoint.
      wait: A function that returns when Orbax has written the checkpoint.
    """
    self._pending = self._thread.submit(self._upload, step, wait)

  def finish(self) -> None:
    """Waits until all checkpoints are in the bucket, and raises the errors."""
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def set_aside(self, step: int, name: str) -> pathlib.PurePath:
    """Renames a damaged checkpoint, and returns the new path."""
    shutil.rmtree(self.folder / str(step), ignore_errors=True)
    objects.move(self.path(step), self._bucket / f'{name}.tar')
    return self._bucket / f'{name}.tar'

  def close(self) -> None:
    """Removes the folder of the disk."""
    self._thread.shutdown()
    self._temporary.cleanup()

  @contextlib.contextmanager
  def _archive(self) -> Iterator[pathlib.Path]:
    """Gives the path of a temporary archive, and tells that the disk is full.

    A full disk must not look like a damaged checkpoint.
    """
    with (
      disk.writing(self._temporary.name),
      tempfile.TemporaryDirectory(dir=self._temporary.name) as folder,
    ):
      yield pathlib.Path(folder, 'archive')

  def _upload(self, step: int, wait: Callable[[], None]) -> None:
    wait()
    with self._archive() as archive:
      with tarfile.open(archive, 'w') as tar:
        tar.add(self.folder / str(step), '.')
      objects.upload(archive, self.path(step))
    for old in self.steps()[self._max_to_keep :]:
      disk.remove(self.path(old))


Shelf = OnDisk | InBucket


def create(directory: disk.PathLike, max_to_keep: int) -> Shelf:
  """Returns the checkpoints of a run.

  Args:
    directory: The workdir of the run.
    max_to_keep: The number of newest checkpoints that a bucket keeps.
  """
  if disk.is_bucket(directory):
    return InBucket(directory, max_to_keep)
  return OnDisk(directory)


@contextlib.contextmanager
def reading(directory: disk.PathLike) -> Iterator[Shelf]:
  """Gives the checkpoints of a run, to read only, until the block ends."""
  with contextlib.closing(create(directory, 0)) as shelf:
    yield shelf


def _newest_first(names: Iterator[str]) -> list[int]:
  return sorted(map(int, names), reverse=True)
