import pathlib
import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research.training import compilation
from tests.damage import HARMS

OPTIONS = (
  'jax_compilation_cache_dir',
  'jax_persistent_cache_min_compile_time_secs',
  'jax_persistent_cache_min_entry_size_bytes',
)


@pytest.fixture(autouse=True)
def restored(monkeypatch, tmp_path):
  """Has this machine's caches left alone."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  before = {name: getattr(jax.config, name) for name in OPTIONS}
  monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)
  with warnings.catch_warnings():
    yield
  for name, value in before.items():
    jax.config.update(name, value)


def directory():
  return pathlib.Path(jax.config.jax_compilation_cache_dir)


def test_the_default_is_named_after_what_the_code_fits(tmp_path, monkeypatch):
  compilation.enable_cache()
  first = directory()
  assert first.is_dir()
  assert tmp_path / 'home' in first.parents
  assert compilation.jaxlib.__version__ in first.name
  assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1
  monkeypatch.setattr(compilation, '_cpu', lambda: 'another')
  compilation.enable_cache()
  assert directory() != first


def test_it_can_be_elsewhere(tmp_path):
  compilation.enable_cache(str(tmp_path / 'there'))
  assert directory() == tmp_path / 'there'
  assert directory().is_dir()


def test_that_of_jax_is_respected(monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/elsewhere')
  compilation.enable_cache()
  assert jax.config.jax_compilation_cache_dir == before


def test_one_that_was_asked_for_and_cannot_be_is_told(tmp_path, caplog):
  (tmp_path / 'file').write_text('')
  before = jax.config.jax_compilation_cache_dir
  asked = tmp_path / 'file' / 'cache'
  compilation.enable_cache(str(asked))
  assert jax.config.jax_compilation_cache_dir == before
  (message,) = caplog.messages
  assert message.startswith(
    'compiled programs are not kept: cannot create'
    f' --compilation_cache={asked}: Not a directory; choose a writable'
  )


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path, caplog):
  (tmp_path / 'home').write_text('')
  before = jax.config.jax_compilation_cache_dir
  compilation.enable_cache()
  assert jax.config.jax_compilation_cache_dir == before
  assert not caplog.messages  # nobody asked for it


@pytest.mark.slow
def test_an_entry_that_cannot_be_read_is_written_again(tmp_path, capsys):
  compilation.enable_cache(str(tmp_path))
  reset = jax._src.compilation_cache.reset_cache

  def compile_anew():
    reset()
    jax.clear_caches()
    return jax.jit(lambda x: x * 3 + 1)(2.0)

  compile_anew()
  entries = list(tmp_path.glob('*-cache'))
  sizes = {entry.name: entry.stat().st_size for entry in entries}
  assert sizes
  for entry in entries:
    entry.write_bytes(entry.read_bytes()[:20])
  assert compile_anew() == 7
  assert capsys.readouterr().err == ''
  for name, size in sizes.items():
    assert (tmp_path / name).stat().st_size == pytest.approx(size, rel=0.1)
  reset()


@pytest.mark.slow
@pytest.mark.parametrize('how', HARMS)
def test_no_damage_to_an_entry_is_silent(how, tmp_path, capsys):
  compilation.enable_cache(str(tmp_path))
  reset = jax._src.compilation_cache.reset_cache

  def compile_anew():
    reset()
    jax.clear_caches()
    return jax.jit(lambda x: jnp.tanh(x @ x) * 3 + 1)(jnp.eye(8))

  expected = compile_anew()
  entries = sorted(tmp_path.glob('*-cache'))
  contents = {entry: entry.read_bytes() for entry in entries}
  rng = random.Random(how)
  for _ in range(30):
    entry = rng.choice(entries)
    HARMS[how](entry, rng)
    np.testing.assert_array_equal(compile_anew(), expected)
    # The entry is whole again, or JAX never reads the damaged part.
    np.testing.assert_array_equal(compile_anew(), expected)
    entry.write_bytes(contents[entry])
  assert capsys.readouterr().err == ''
  reset()
