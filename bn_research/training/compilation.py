"""Keeps compiled programs on the disk, for later processes."""

import hashlib
import os
import pathlib
import platform
import warnings
from typing import Any

import jax
import jaxlib
from absl import logging

from bn_research import disk


def enable_cache(directory: str | None = None) -> None:
  """Enables the persistent compilation cache of JAX, for all programs.

  Without `directory`, the function does not replace a cache directory from the
  environment variable JAX_COMPILATION_CACHE_DIR. If the directory cannot be
  created, JAX continues without this cache. A warning is logged only for a
  given `directory`.

  Args:
    directory: Directory of the cache; None for a directory in the cache folder
      of the user. The name of this default directory contains the version of
      jaxlib and an identifier of the CPU, because compiled code fits only this
      version and this CPU.
  """
  if directory is None and os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    return
  path = pathlib.Path(directory) if directory else _default_directory()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    if directory is not None:
      logging.warning(
        'compiled programs are not kept: cannot create --compilation_cache=%s:'
        ' %s; choose a writable directory, or an empty name for none',
        directory,
        error.strerror,
      )
    return
  jax.config.update('jax_compilation_cache_dir', str(path))
  # By default JAX caches a program only if the compilation took more than a
  # second. The programs of a small network compile faster.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  # -1 stands for no minimum size of a program.
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  _repair(path)


_DAMAGED = 'Error reading persistent compilation cache entry for '


def _repair(path: pathlib.Path) -> None:
  """Removes entries that JAX cannot read, so that JAX writes these again.

  A killed process leaves an entry cut short. JAX warns, compiles the program,
  and does not replace the entry; every later run would warn and compile again.
  """
  warnings.filterwarnings('always', message=_DAMAGED)
  show = warnings.showwarning

  def remove(message: Any, *args: Any, **options: Any) -> None:
    if not str(message).startswith(_DAMAGED):
      show(message, *args, **options)
      return
    # JAX warns between the reading and the writing of an entry.
    name = str(message).removeprefix(_DAMAGED).split("'")[1]
    for entry in path.glob(f'{name}*-cache'):
      entry.unlink(missing_ok=True)

  warnings.showwarning = remove


def _default_directory() -> pathlib.Path:
  name = f'{jaxlib.__version__}-{_cpu()}'
  return disk.user_cache() / 'compiled' / name


def _cpu() -> str:
  """Returns a short identifier of the CPU model and of the instruction set."""
  about = platform.machine() + platform.processor()
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  # Linux lists the instruction set as `flags` on x86 and as `Features` on Arm,
  # in a line for each core. The set removes the duplicate lines.
  kinds = ('model name', 'flags', 'Features')
  about += ''.join(sorted({l for l in lines if l.startswith(kinds)}))
  return hashlib.sha256(about.encode()).hexdigest()[:12]
