"""The Dockerfile against the project: its files, its extras, its commands."""

import os
import pathlib
import re
import subprocess
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = re.sub(r'\\\n', '', (ROOT / 'Dockerfile').read_text())


def instructions(name):
  return re.findall(rf'^{name} (.*)$', TEXT, re.M)


def installation(tmp_path, device):
  """Runs the first RUN with a program that prints its arguments as Python."""
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\necho "$@"\n')
  python.chmod(0o755)
  return subprocess.run(
    ['sh', '-c', instructions('RUN')[0]],
    cwd=tmp_path,
    env={
      'PATH': f'{tmp_path}{os.pathsep}{os.environ["PATH"]}',
      'DEVICE': device,
    },
    capture_output=True,
    text=True,
  )


def test_the_copied_files_exist_and_are_not_ignored():
  kept = (ROOT / '.dockerignore').read_text().splitlines()
  for line in instructions('COPY'):
    *sources, _ = line.split()
    for source in sources:
      assert (ROOT / source).exists()
      assert f'!{source}' in (line.rstrip('/') for line in kept)


@pytest.mark.parametrize('device', ['cpu', 'cuda', 'tpu'])
def test_a_device_installs_its_extra_beside_the_lock(device, tmp_path):
  done = installation(tmp_path, device)
  assert (done.returncode, done.stderr) == (0, '')
  extra = '' if device == 'cpu' else f'[{device}]'
  assert done.stdout.split()[-6:] == [
    *('-r', 'requirements.txt', '-c', 'requirements.txt', '-e', f'.{extra}')
  ]
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  assert device == 'cpu' or device in project['optional-dependencies']


def test_another_device_is_one_line(tmp_path):
  done = installation(tmp_path, 'gpu')
  assert done.returncode == 2
  assert done.stderr == 'error: DEVICE=gpu; give cpu, cuda or tpu\n'
