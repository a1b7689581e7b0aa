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

import pytest
from absl import flags


def pytest_configure(config):
  if config.option.markexpr == 'not slow':
    os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['pytest'])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
  """Skips a test of float16 where XLA cannot compile float16.

  XLA for a CPU links no conversions of float16, and so needs a processor with
  such instructions (F16C).
  """
  del item
  try:
    return (yield)
  except Exception as error:
    if 'Failed to materialize symbols' in str(error):
      pytest.skip('XLA has no float16 on this kind of processor')
    raise


@pytest.fixture
def user_module(tmp_path, monkeypatch):
  """Writes a module of a user, which `module:attribute` can then name."""

  def write(name, text):
    (tmp_path / f'{name}.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

  return write
