"""Decoded images, kept between processes.

Decoding the 60,000 PNG images of MNIST takes four seconds, reading their pixels
a twentieth of one; and a sweep is many processes. They are kept in
`$XDG_CACHE_HOME/bn_research`, by default `~/.cache/bn_research`, which may be
deleted at any time.
"""

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

Arrays = tuple[np.ndarray, np.ndarray]


def fetch(
  name: str, files: Sequence[Any], decode: Callable[[], Arrays]
) -> Arrays:
  """Returns `decode()`, or what it returned last time for the same files.

  Args:
    name: What the kept file's name begins with.
    files: TFDS's `FileInstruction`s of what is decoded. Files that changed in
      size or time are decoded anew.
    decode: Returns images and labels.
  """
  parts = [(os.path.abspath(f.filename), f.skip, f.take) for f in files]
  stats = [os.stat(f.filename) for f in files]
  stamp = repr([(s.st_size, s.st_mtime_ns) for s in stats])
  digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
  path = _folder() / f'{name}-{digest}.npz'
  kept = _read(path, stamp)
  if kept is None:
    kept = decode()
    _write(path, stamp, kept)
  return kept


def _folder() -> pathlib.Path:
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(home) / 'bn_research' / 'datasets'


def _read(path: pathlib.Path, stamp: str) -> Arrays | None:
  """Returns what was kept, or None where it is missing, old or damaged."""
  try:
    with path.open('rb') as file, np.load(file) as kept:
      if str(kept['stamp']) == stamp:
        return kept['images'], kept['labels']
  except Exception:  # whatever is wrong with a copy, it can be made again
    pass
  return None


def _write(path: pathlib.Path, stamp: str, arrays: Arrays) -> None:
  images, labels = arrays
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
      # Renamed when whole: other processes may read and write the same name.
      whole = pathlib.Path(folder) / path.name
      np.savez(whole, images=images, labels=labels, stamp=np.array(stamp))
      whole.replace(path)
  except OSError as error:
    logging.warning('Decoded images are not kept for the next run: %s', error)
