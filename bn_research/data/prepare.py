"""Preparing the datasets that this package can prepare without TensorFlow."""

import contextlib
import io
import pathlib
import tempfile
from typing import Any

from bn_research import errors
from bn_research.data import builders


def prepare(
  name: str, data_dir: str | None = None, source: str | None = None
) -> Any:
  """Prepares a dataset unless it is there, and returns its TFDS builder.

  Several processes may prepare the same dataset at once: each writes into a
  folder of its own, and the first to end gives its folder the final name.

  Args:
    name: A key of `builders.OWN`.
    data_dir: Where TFDS keeps its datasets; its own default where None.
    source: Folder of the four original files of MNIST or Fashion-MNIST; they
      are downloaded where None.

  Raises:
    UserError: If the files cannot be had, are not the original ones or cannot
      be written, or if what is there already cannot be read.
  """
  if name not in builders.OWN:
    builders.find(name, data_dir)  # a misspelt name deserves its own answer
    raise errors.UserError(
      f'{name} must be prepared by TFDS, with TensorFlow installed: '
      f'{builders.how_to_prepare(name, data_dir)}'
    )
  writer = _writer(name, data_dir)
  if not writer.data_path.exists():
    with tempfile.TemporaryDirectory() as scratch:
      _write(writer, pathlib.Path(scratch), source)
  builder = builders.find(name, data_dir)
  builders.check_prepared(builder, data_dir)
  return builder


def _writer(name: str, data_dir: str | None) -> Any:
  return builders.OWN[name].load()(
    data_dir=builders.expand(data_dir), file_format='array_record'
  )


def _write(writer: Any, scratch: pathlib.Path, source: str | None) -> None:
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import download_manager

  files = _files(writer, scratch, source)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      writer.download_and_prepare(
        download_dir=scratch / 'downloads',
        download_config=tfds.download.DownloadConfig(
          manual_dir=files, try_download_gcs=False
        ),
      )
  except download_manager.NonMatchingChecksumError as error:
    reason = str(error).splitlines()[0].rstrip(':')
    raise errors.UserError(f'{reason}; fetch that file again') from error
  except (OSError, RuntimeError) as error:  # the latter from array_record
    if not writer.data_path.exists():  # else another process was first
      raise errors.UserError(
        f'cannot write {writer.data_path}: {error}; choose another --data_dir'
      ) from error


def _files(
  writer: Any, scratch: pathlib.Path, source: str | None
) -> pathlib.Path | None:
  """Returns the folder of the original files, filled; None for no files."""
  if builders.OWN[writer.name].is_bundled:
    if source is not None:
      raise errors.UserError(
        f'{writer.name} comes with an installed package; leave out --from'
      )
    return None
  from bn_research.data import mnist

  if source is None:
    mnist.download(writer.URL, scratch)
  folder = scratch if source is None else pathlib.Path(source)
  mnist.check_complete(folder)
  return folder
