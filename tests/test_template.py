"""The project of a user in docs/template: every part in one file outside."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import registry, workdir

ROOT = pathlib.Path(__file__).parents[1]
TEMPLATE = ROOT / 'docs' / 'template'


@pytest.fixture
def command(tmp_path):
  """Runs a command on a copy of the project, far from this package."""
  shutil.copytree(TEMPLATE, tmp_path / 'project')

  def run(name, *flags, directory='runs'):
    return subprocess.run(
      [
        *(sys.executable, '-m', f'bn_research.{name}'),
        '--config=project/l1_against_l2.py',
        *(f'--workdir={directory}', '--config.num_steps=20', *flags),
      ],
      cwd=tmp_path,
      env={**os.environ, 'PYTHONPATH': str(ROOT), 'LC_ALL': 'C.UTF-8'},
      capture_output=True,
      text=True,
      check=False,
    )

  return run


def test_a_run_of_parts_of_the_user(command, tmp_path):
  done = command(
    *('train', '--config.model.width=16', '--config.model.norms.block_1=none'),
    '--config.probes.activations.num_points=1',
  )
  assert done.returncode == 0, done.stderr
  record = workdir.read_config(tmp_path / 'runs')
  assert record['model']['width'] == 16
  probe = workdir.read_probe(tmp_path / 'runs', 'saturation')
  assert probe['block_0/input'].shape == probe['step'].shape
  assert (probe['output_gradient'] > 0).all()
  assert workdir.read_probe(tmp_path / 'runs', 'activations')['step'].size == 2


@pytest.mark.slow
def test_a_sweep_and_its_report(command, tmp_path):
  for name in ('sweep', 'report'):
    done = command(name)
    assert done.returncode == 0, done.stdout + done.stderr
  assert 'Absolute deviations are' in done.stdout
  assert (tmp_path / 'runs' / 'report' / 'template.png').exists()


def test_the_norm_is_its_formula(monkeypatch):
  monkeypatch.syspath_prepend(TEMPLATE)
  norm = registry.create('norm', {}, 'l1_norm:l1_batch_norm')
  x = np.random.default_rng(0).normal(3, 2, (50, 4))
  y, _ = norm.apply(jnp.asarray(x, jnp.float32), norm.init(4))
  apart = x - x.mean(0)
  deviation = np.sqrt(np.pi / 2) * np.abs(apart).mean(0)
  np.testing.assert_allclose(y, apart / np.sqrt(deviation**2 + 1e-5), atol=1e-5)


@pytest.mark.parametrize(
  ('file', 'old', 'new', 'message'),
  [
    ('saturation.py', '= {}', '= {}[1]', r'saturation.py:\d+: KeyError: 1'),
    ('saturation.py', 'return measured', 'return 1', 'int; return a dict of'),
    ('saturation.py', 'limit: float', 'bound: float', "no option 'limit'"),
    ('l1_norm.py', 'import dataclasses', 'import x_y', r'l1_norm.py:3: Module'),
    ('residual_mlp.py', 'norm(block(h)', 'norm(block(1)', r'p.py:\d+: TypeE'),
    ('residual_mlp.py', 'norm(block(h)', 'norm block(h)', r'p.py:\d+: SyntaxE'),
    ('bars.py', 'num_classes=2', 'num_classes=1', 'has a label outside of 0'),
  ],
)
@pytest.mark.slow
def test_a_mistake_of_the_user_is_one_line(
  command, tmp_path, file, old, new, message
):
  path = tmp_path / 'project' / file
  path.write_text(path.read_text().replace(old, new))
  done = command('train')
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith('error: ')
  assert done.stderr.count('\n') == 1
  assert re.search(message, done.stderr)
