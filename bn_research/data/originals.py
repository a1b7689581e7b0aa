"""The original files of datasets, as the authors of the datasets give them."""

import http.client
import pathlib
import shutil
import urllib.request
from collections.abc import Iterable
from typing import Any

from bn_research import errors

_TIMEOUT = 20  # seconds without an answer of the server


class FromFiles:
  """A part of a TFDS builder that reads original files.

  Attributes:
    URL: The address of the folder of the files, with a `/` at the end.
    FORMS: Each form of the dataset as names of files; a dataset may have
      several forms with the same examples.
    files: The form that the builder reads, set before the preparation.
  """

  URL: str
  FORMS: tuple[tuple[str, ...], ...]
  files: tuple[str, ...]

  def paths(self, dl_manager: Any) -> dict[str, pathlib.Path]:
    """Returns the paths of `files` by name, after a check of the checksums.

    Args:
      dl_manager: The download manager of TFDS, with a `manual_dir` that has the
        files. TFDS thus downloads nothing.
    """
    return dl_manager.download({name: self.URL + name for name in self.files})


def download(url: str, names: Iterable[str], folder: pathlib.Path) -> None:
  """Downloads the original files of a dataset.

  Without a network, the downloader of TFDS would retry for minutes. This
  function fails at the first error.

  Args:
    url: The address of the files, with a `/` at the end.
    names: The names of the files.
    folder: The destination of the files.

  Raises:
    UserError: If the download of a file fails.
  """
  for name in names:
    try:
      with (
        urllib.request.urlopen(url + name, timeout=_TIMEOUT) as response,
        (folder / name).open('wb') as file,
      ):
        shutil.copyfileobj(response, file)
    except (OSError, http.client.HTTPException) as error:
      raise errors.UserError(
        f'cannot download {url}{name}: {error}; fetch the original files by '
        'other means and give their folder as --from=FOLDER'
      ) from error


def found(
  forms: Iterable[tuple[str, ...]], folder: pathlib.Path
) -> tuple[str, ...]:
  """Returns the first form whose files are all in a folder.

  Args:
    forms: The forms of a dataset, each as names of files.
    folder: The folder of the files.

  Raises:
    UserError: If the folder has no complete form.
  """
  missing = []
  for form in forms:
    lacking = [name for name in form if not (folder / name).is_file()]
    if not lacking:
      return form
    missing.append(', '.join(lacking))
  raise errors.UserError(f'no {" and no ".join(missing)} in {folder}')
