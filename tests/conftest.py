"""Eight virtual CPU devices, compiled programs, parsed flags: before any test.

Three quarters of the time of the suite is compilation. Equal programs of
several tests, and of the next run, are compiled once: the key of a program has
the program, the versions and the flags of XLA. The quick suite leaves most
optimizations out; `-m ''` tests every row as users compile it.
"""

import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(
  pathlib.Path(__file__).parents[1] / '.compiled'
)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

from absl import flags


def pytest_configure(config):
  if config.option.markexpr == 'not slow':
    os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['pytest'])
