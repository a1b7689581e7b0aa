"""Flags that choose runs of a sweep, and the table of their states."""

import contextlib
import json
import pathlib
import subprocess
import sys

import pytest

from bn_research import disk, errors, locking, workdir
from bn_research.sweeps import overview, points, selection

ROOT = pathlib.Path(__file__).parents[2]


def point(tmp_path, name, num_steps=100):
  return points.Point(name, tmp_path / name, (), {'num_steps': num_steps})


@pytest.fixture
def five(tmp_path):
  return [point(tmp_path, f'norm=none,seed={seed}') for seed in range(5)]


def names(found):
  return [one.name[-1] for one in found]


def test_other_seeds_of_each_setting():
  sweep = [{'a': a, 'seed': seed} for a in (1, 2) for seed in range(3)]
  assert selection.with_seeds(sweep, '7:9') == [
    {'a': a, 'seed': seed} for a in (1, 2) for seed in (7, 8)
  ]
  # A sweep without seeds has the seed of the config.
  assert selection.with_seeds([{'a': 1}], '0:1') == [{'a': 1, 'seed': 0}]


def test_a_pattern_is_of_the_whole_name(five):
  assert names(selection.only(five, '*seed=3')) == ['3']
  assert names(selection.only(five, '*seed=[13]')) == ['1', '3']
  with pytest.raises(errors.UserError, match=r'--only=seed=3 matches no run'):
    selection.only(five, 'seed=3')


@pytest.mark.parametrize('count', [1, 2, 3, 7])
def test_shares_are_all_runs_and_each_once(count, five):
  shares = [selection.shard(five, f'{i}/{count}') for i in range(count)]
  found = [name for share in shares for name in names(share)]
  assert sorted(found) == list('01234')
  lengths = [len(share) for share in shares]
  assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
  ('function', 'text'),
  [
    (selection.shard, '8/8'),
    (selection.shard, '1'),
    (selection.shard, '-1/8'),
    (selection.shard, '0/0'),
    (selection.with_seeds, '5'),
    (selection.with_seeds, '5:5'),
    (selection.with_seeds, '5:2'),
    (selection.with_seeds, 'a:b'),
    (selection.with_seeds, '0:99999999999'),
  ],
)
def test_mistakes_are_one_line(function, text):
  with pytest.raises(errors.UserError, match=f'^--se?[a-z]+={text}') as caught:
    function([{'a': 1}], text)
  assert '\n' not in str(caught.value)


def rows_of(directory, *rows):
  text = ''.join(f'{json.dumps(row)}\n' for row in rows)
  disk.write_json(directory / workdir.CONFIG, {'config': {}})
  (directory / workdir.METRICS).write_text(text)


def test_the_table_has_the_state_of_each_run(tmp_path):
  runs = [
    point(tmp_path, name) for name in ('done', 'failed', 'left', 'held', 'new')
  ]
  for run in runs[:4]:
    rows_of(run.workdir, {'step': 40, 'train_loss': 0.25, 'test_accuracy': 0.5})
  done, failed, _, held, _ = (run.workdir for run in runs)
  workdir.write_status(done, workdir.Status(workdir.DONE, 100))
  workdir.write_status(
    failed, workdir.Status(workdir.FAILED, 12, 'ValueError: seven')
  )
  with locking.exclusive(held):
    lines = overview.table(runs).splitlines()
  assert lines[0].split() == [
    *('state', 'step', 'of', 'last', 'row', 'changed', 'run')
  ]
  found = [line.split()[:3] for line in lines[1:6]]
  assert found == [
    ['done', '100', '100'],
    ['failed', '12', '100'],
    ['incomplete', '40', '100'],
    ['training', '40', '100'],
    ['to', 'do', '0'],
  ]
  assert 'train_loss=0.25 test_accuracy=0.5' in lines[1]
  assert lines[2].endswith('failed: ValueError: seven')
  assert 'ago' in lines[3]
  assert lines[-1] == '1 done, 1 failed, 1 incomplete, 1 training, 1 to do'
  # The columns are in line.
  pairs = zip(lines[1:6], runs, strict=True)
  assert len({line.rindex(f'  {run.name}') for line, run in pairs}) == 1


_CONFIG = """
from bn_research import experiment, grid

def get_config():
  return experiment.config({'num_steps': 20})

def sweep():
  norms = {'model.norm.name': ('none', 'batch_norm')}
  return grid.product(norms, grid.seeds(2))
"""


def test_the_flags_together(tmp_path):
  (tmp_path / 'config.py').write_text(_CONFIG)

  def run(*flags):
    result = subprocess.run(
      [
        *(sys.executable, '-m', 'bn_research.sweep'),
        *(f'--config={tmp_path}/config.py', f'--workdir={tmp_path}/runs'),
        *flags,
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert not result.stderr, result.stderr
    return result.stdout.splitlines()

  lines = run('--status', '--seeds=0:3', '--only=*norm,seed*', '--shard=1/2')
  assert [line.split()[-1] for line in lines[1:-1]] == [
    'model.norm.name=batch_norm,seed=1'
  ]
  assert lines[-1] == '1 to do'
  with contextlib.suppress(FileNotFoundError):
    assert not list((tmp_path / 'runs').iterdir())
  commands = run('--dry_run', '--seeds=5:6')
  assert [line.count('--config.seed=5') for line in commands] == [1, 1]
