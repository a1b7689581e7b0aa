"""Prepares datasets in the format of TFDS, without TensorFlow."""

import contextlib
import io
import pathlib
import tempfile
from typing import Any

from bn_research import errors
from bn_research.data import builders, originals


def prepare(
  name: str, data_dir: str | None = None, source: str | None = None
) -> Any:
  """Prepares a dataset if necessary, and returns the TFDS builder.

  Several processes may prepare the same dataset at the same time. Each process
  writes into a separate folder. The first process to finish gives the folder
  the final name.

  Args:
    name: A key of `builders.OWN`.
    data_dir: The folder of the datasets; None for the default of TFDS.
    source: The folder of the original files; None to download the files.

  Returns:
    The `tfds.core.DatasetBuilder` that reads the dataset.

  Raises:
    UserError: If the download fails, if a file is missing or has a wrong
      checksum, if the dataset cannot be written, or if an existing dataset
      cannot be read.
  """
  if name not in builders.OWN:
    # For a misspelt name, `find` raises an error with the nearest known name.
    builders.find(name, data_dir)
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


def ready(name: str, data_dir: str | None = None) -> Any:
  """Returns the TFDS builder of a prepared dataset, without a download.

  The first use prepares a dataset that comes with an installed package.

  Args:
    name: A name in TFDS.
    data_dir: The folder of the datasets; None for the default of TFDS.

  Raises:
    UserError: If the dataset is unknown, not prepared, or not readable.
  """
  builder = builders.find(name, data_dir)
  own = builders.OWN.get(builder.name)
  if own and own.is_bundled and not builder.data_path.exists():
    builder = prepare(builder.name, data_dir)
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
  # `load` prepares a bundled dataset at the start of a run, without messages.
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
    # TFDS has made the folder of all versions, which is empty.
    with contextlib.suppress(OSError):
      writer.data_path.parent.rmdir()
    reason = str(error).splitlines()[0].rstrip(':')
    raise errors.UserError(f'{reason}; fetch that file again') from error
  except (OSError, RuntimeError) as error:  # array_record: RuntimeError
    # If the folder exists now, a second process was faster, and the dataset is
    # ready.
    if not writer.data_path.exists():
      raise errors.UserError(
        f'cannot write {writer.data_path}: {error}; choose another --data_dir'
      ) from error


def _files(
  writer: Any, scratch: pathlib.Path, source: str | None
) -> pathlib.Path | None:
  """Returns the folder with the original files; None for a bundled dataset."""
  if builders.OWN[writer.name].is_bundled:
    if source is not None:
      raise errors.UserError(
        f'{writer.name} comes with an installed package; leave out --from'
      )
    return None
  if source is None:
    originals.download(writer.URL, writer.FORMS[0], scratch)
  folder = scratch if source is None else pathlib.Path(source)
  writer.files = originals.found(writer.FORMS, folder)
  return folder
