"""The command, from its flags to the command lines of its runs."""

import pathlib
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

_CONFIG = """
from bn_research import experiment

def get_config(arg='a'):
  return experiment.config({'model.widths': (4,), 'num_steps': 20})
"""
_SWEEP = """
def sweep():
  return [{'seed': seed} for seed in range(2)]
"""


@pytest.fixture
def sweep(tmp_path):
  config = tmp_path / 'a config.py'
  config.write_text(_CONFIG + _SWEEP)

  def run(*flags):
    return subprocess.run(
      [
        *(sys.executable, '-m', 'bn_research.sweep'),
        *(f'--config={config}:b', f'--workdir={tmp_path / "runs"}', *flags),
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )

  return run


def test_a_dry_run_prints_what_a_person_would_type(sweep, tmp_path):
  result = sweep(
    '--dry_run',
    '--data_dir=/some where',
    '--config.optimizer.learning_rate=0.2',
  )
  assert result.returncode == 0, result.stderr
  commands = [shlex.split(line) for line in result.stdout.splitlines()]
  assert commands == [
    [
      *(sys.executable, '-m', 'bn_research.train'),
      f'--config={tmp_path}/a config.py:b',
      '--config.optimizer.learning_rate=0.2',
      f'--config.seed={seed}',
      f'--workdir={tmp_path}/runs/seed={seed}',
      '--data_dir=/some where',
    ]
    for seed in range(2)
  ]
  assert not (tmp_path / 'runs').exists()


def test_a_run_reads_the_texts_of_the_sweep(sweep, tmp_path):
  texts = ['1', 'true', 'None', 'nan', "'a'", 'a']
  (tmp_path / 'a config.py').write_text(
    f'{_CONFIG}\ndef sweep():\n  return [{{"data.tag": "x", "data.a": text}}'
    f' for text in {texts}]\n'
  )
  result = sweep('--dry_run', "--config.data.given='1'")
  assert result.returncode == 0, result.stderr
  program = (
    'from bn_research import cli\n'
    'data = lambda: cli.CONFIG.value.data\n'
    'cli.run(lambda: print(repr((data().given, data().tag, data().a))))'
  )
  for text, line in zip(texts, result.stdout.splitlines(), strict=True):
    _, _, _, *flags = shlex.split(line)
    found = subprocess.run(
      [sys.executable, '-c', program, *flags],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert found.stdout == f'{("1", "x", text)}\n', found.stderr


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--config.sed=1', "unknown config key 'sed' (did you mean 'seed'?)"),
    (
      '--config.optimizer.learning_rat=1',
      "'sgd' has no option 'learning_rat'",
    ),
    ('--config.model.norm=bath_norm', "'bath_norm' is unknown"),
    (
      '--config.optimizer.learning_rate=fast',
      "could not convert string to float: 'fast'",
    ),
    ('--config.seed=1', '--config.seed is given and swept'),
    ('--jobs=0', 'flag --jobs=0'),
    ('--dryrun', "Unknown command line flag 'dryrun'"),
    (f'--workdir={"a" * 300}', 'File name too long; choose a shorter'),
  ],
)
def test_a_wrong_flag_is_one_line(flag, message, sweep, tmp_path):
  result = sweep(flag)
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert line.startswith('error: ')
  assert message in line
  assert not (tmp_path / 'runs').exists()


def test_a_config_without_a_sweep_is_one_line(sweep, tmp_path):
  (tmp_path / 'a config.py').write_text(_CONFIG)
  result = sweep()
  assert result.returncode == 2
  assert result.stderr.endswith('a config.py:b has no function sweep\n')
