"""Compiled programs that are kept from one process to the next."""

import hashlib
import os
import pathlib
import platform

import jax
import jaxlib
from absl import logging


def enable_cache(directory: str | None = None) -> None:
  """Keeps every compiled program on the disk.

  Compiled code fits one version of jaxlib and one kind of CPU: the default
  directory is named after both. Where JAX has been given a cache already, or no
  directory can be made, nothing is changed; that is told where the directory
  was asked for.

  Args:
    directory: Where to keep the programs; None for the user's cache directory.
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
  # By default JAX keeps only what took more than a second.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _default_directory() -> pathlib.Path:
  root = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  name = f'{jaxlib.__version__}-{_cpu()}'
  return pathlib.Path(root, 'bn_research', 'compiled', name)


def _cpu() -> str:
  """Returns a short name for the kind of CPU, its instruction set included."""
  about = platform.machine() + platform.processor()
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  kinds = ('model name', 'flags', 'Features')
  about += ''.join(sorted({l for l in lines if l.startswith(kinds)}))
  return hashlib.sha256(about.encode()).hexdigest()[:12]
