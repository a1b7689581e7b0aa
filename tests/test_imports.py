"""Imports run one way, as docs/architecture.md draws them."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OURS = 'bn_research'

# What each room may import of ours, beside itself and the helpers.
ROOMS = {
  'norms': set(),
  'layers': {'norms'},
  'preconditioning': {'norms', 'layers', 'hooks'},
  'models': {'norms', 'layers', 'preconditioning'},
  'data': {'norms'},
  'optim': {'preconditioning'},
  'probes': {'norms', 'preconditioning'},
  'training': {
    *('norms', 'layers', 'models', 'data', 'optim', 'probes'),
    *('comparison', 'fitting', 'hooks', 'experiment', 'workdir'),
    '__version__',
  },
  'sweeps': {'comparison', 'grid', 'overrides', 'workdir'},
  'reports': {'comparison', 'results', 'workdir'},
  'results': {'training', 'workdir'},
  'workdir': set(),
  'errors': set(),
  'hooks': set(),
  'fitting': set(),
  '__init__': {'results'},
  'check': {'cli', 'config_files', 'training'},
  'cli': {'config_files', 'overrides'},
  'comparison': {'workdir'},
  'config_files': set(),
  'experiment': {'overrides'},
  'grid': set(),
  'overrides': set(),
  'train': {'cli', 'launcher', 'training'},
  'launcher': {'sweeps'},
  'pack': {'cli', 'config_files', 'training'},
  'sweep': {'cli', 'config_files', 'sweeps'},
  'report': {'cli', 'config_files', 'reports', 'sweeps'},
}
# Small helpers without an opinion: everyone but `norms` may use them.
HELPERS = {
  *('arguments', 'disk', 'dotted', 'errors', 'interrupt', 'locking'),
  *('buckets', 'json_text'),
  *('older', 'ranges', 'registry', 'trees'),
}

# What some rooms may import beside that and the standard library.
OTHERS = {
  'norms': {'jax', 'numpy'},
  'workdir': {'numpy'},
  'results': {'numpy', 'pandas'},
  'disk': {'etils'},
  'buckets': {'fsspec', 'gcsfs', 's3fs'},
  'json_text': set(),
  'errors': set(),
  'sweeps': {'ml_collections', 'rich', 'ray', 'optuna', 'submitit'},
  'experiment': {'ml_collections'},
  'overrides': {'ml_collections'},
  'registry': set(),
  'reports': {'numpy', 'scipy', 'rich', 'matplotlib'},
}


def modules_of(path):
  """Yields the full name of every module that a file imports, at any depth."""
  package = path.relative_to(ROOT).with_suffix('').parts[:-1]
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else ()
      module = '.'.join((*base, *filter(None, [node.module])))
      # `from package import module`: which of both it is does not matter here.
      yield from (f'{module}.{alias.name}' for alias in node.names)


def room_of(path):
  return path.relative_to(ROOT / OURS).with_suffix('').parts[0]


def check(path, name):
  """Returns what is wrong with an import, or None."""
  room = room_of(path)
  top, *rest = name.split('.')
  if top != OURS:
    is_standard = top in sys.stdlib_module_names
    allowed = OTHERS.get(room)
    if allowed is None or is_standard or top in allowed:
      return None
    return f'{path.relative_to(ROOT)} imports {name}'
  # The package itself holds its version and nothing else.
  other = rest[0] if rest else '__version__'
  helpers = set() if room == 'norms' else HELPERS
  if other in {room, *ROOMS.get(room, ()), *helpers}:
    return None
  return f'{path.relative_to(ROOT)} imports {name}'


FILES = sorted((ROOT / OURS).rglob('*.py'))


def test_every_room_is_on_the_plan():
  rooms = {room_of(path) for path in FILES} - {'__init__'}
  assert rooms <= ROOMS.keys() | HELPERS


@pytest.mark.parametrize(
  'path', FILES, ids=[str(path.relative_to(ROOT)) for path in FILES]
)
def test_imports_run_one_way(path):
  wrong = [check(path, name) for name in modules_of(path)]
  assert [text for text in wrong if text] == []


# What each room of `norms` may import of the others. The choices of an axis
# know no choice of another axis.
_CONTRACTS = {'axes', 'checks', 'pytrees', 'roots', 'statistics'}
ROOMS_OF_NORMS = {
  'roots': set(),
  'checks': set(),
  'pytrees': {'checks'},
  'statistics': {'roots'},
  'axes': {'pytrees', 'statistics'},
  'scopes': _CONTRACTS,
  'maps': _CONTRACTS,
  'populations': _CONTRACTS,
  'gradients': _CONTRACTS,
  'normalization': {*_CONTRACTS, 'gradients'},
  'combination': _CONTRACTS,
  'combine': {*_CONTRACTS, 'combination'},
  'surgery': {
    *(*_CONTRACTS, 'gradients', 'normalization', 'combination', 'populations'),
  },
  'folding': {*_CONTRACTS, 'normalization', 'surgery'},
  'inputs': {*_CONTRACTS, 'scopes', 'maps'},
  'methods': {
    *(*_CONTRACTS, 'gradients', 'normalization', 'combine'),
    *('populations', 'scopes', 'maps'),
  },
}


def rooms_of_norms():
  """Yields path, room, and a room of `norms` that the path imports."""
  for path in sorted((ROOT / OURS / 'norms').rglob('*.py')):
    room = path.relative_to(ROOT / OURS / 'norms').with_suffix('').parts[0]
    if room in ('__init__', '__main__'):
      continue
    for name in modules_of(path):
      parts = name.split('.')
      if parts[:2] == [OURS, 'norms'] and len(parts) > 2:
        yield path.relative_to(ROOT), room, parts[2]


def test_the_axes_of_norms_import_one_way():
  found = list(rooms_of_norms())
  wrong = [
    f'{path} imports {other}'
    for path, room, other in found
    if other not in {room, *ROOMS_OF_NORMS[room]}
  ]
  assert wrong == []
  assert {room for _, room, _ in found} <= ROOMS_OF_NORMS.keys()


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').rglob('*.py')))
def test_configs_import_the_base_of_experiments_alone(path):
  for name in modules_of(path):
    if name not in (f'{OURS}.experiment', f'{OURS}.grid'):
      assert name.split('.')[0] in {'ml_collections', *sys.stdlib_module_names}


@pytest.mark.parametrize(
  ('file', 'text', 'is_wrong'),
  [
    ('norms/a.py', 'from bn_research import errors', True),
    ('norms/a.py', 'import flax', True),
    ('norms/a.py', 'from bn_research.norms import moments', False),
    ('norms/a.py', 'from . import moments', False),
    ('norms/a.py', 'from .. import layers', True),
    ('norms/deep/a.py', 'from ...layers import nnx', True),
    ('norms/a.py', 'import functools, jax.numpy as jnp', False),
    ('layers/a.py', 'from bn_research import models', True),
    ('layers/a.py', 'def f():\n  import bn_research.training', True),
    ('layers/a.py', 'import bn_research', True),
    ('probes/a.py', 'from bn_research.training import loop', True),
    ('sweeps/a.py', 'from bn_research import training', True),
    ('sweeps/a.py', 'import jax', True),
    ('reports/a.py', 'import jax.numpy', True),
    ('training/a.py', 'from bn_research import models, workdir', False),
  ],
)
def test_the_check_itself_can_fail(file, text, is_wrong, monkeypatch):
  path = ROOT / OURS / file
  monkeypatch.setattr(pathlib.Path, 'read_text', lambda _: text)
  assert any(check(path, name) for name in modules_of(path)) == is_wrong


@pytest.mark.parametrize('module', ['sweep', 'report', 'train'])
def test_commands_start_without_heavy_imports(module):
  heavy = {
    *('jax', 'flax', 'tensorflow_datasets', 'sklearn', 'matplotlib'),
    *('ray', 'optuna', 'submitit', 'etils', 'fsspec', 'bn_research.buckets'),
  }
  program = f'import sys, bn_research.{module}; print(*sys.modules)'
  result = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  assert heavy.isdisjoint(result.stdout.split())
